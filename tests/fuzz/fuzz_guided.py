"""Mutated manifests that are chosen by what code they reach: `make fuzz`; `python tests/fuzz/fuzz_guided.py --help`.

atheris keeps an input that reaches something new and goes on from there; inputs and judge are those of
``fuzz_manifests``. An input that gets no clean answer ends its process and stays as ``crash-...`` (``timeout-...``) in
the folder of inputs, which is kept then; ``--again FILE`` judges it once more.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LONGEST = 16_384
"""Bytes of an input; what is repeated in longer ones is judged in shorter ones too."""
TIMEOUT = 60
"""Seconds that one input may take; instrumented code is slow, and so may be the machine."""


def guide(folder: Path, runs: int, seed: int) -> None:
    """One process' share of the inputs; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["kproxy"]):
        from fuzz_manifests import Fuzzer, file_of

    fuzzer = Fuzzer()
    atheris.Setup(
        [sys.argv[0], str(folder), f"-runs={runs}", f"-seed={seed}", f"-max_len={LONGEST}", f"-timeout={TIMEOUT}",
         f"-artifact_prefix={folder}/", "-reload=10", "-verbosity=0", "-print_final_stats=1"],
        lambda data: fuzzer.judge(data, file_of(data)),
        custom_mutator=lambda data, longest, number: fuzzer.next_after(bytes(data), longest, random.Random(number)),
    )  # fmt: skip
    atheris.Fuzz()


def fill(folder: Path) -> None:
    """Puts the good manifests, from which all others come, into a folder."""
    from fuzz_manifests import Fuzzer

    folder.mkdir(parents=True, exist_ok=True)
    with Fuzzer() as fuzzer:
        for number, text in enumerate(fuzzer.first_inputs()):
            (folder / f"seed-{number}").write_bytes(text)


def run_all(folder: Path, runs: int, seed: int, jobs: int) -> tuple[int, list[str]]:
    """Runs all shares; how many inputs were judged, and what the processes that failed said."""
    share = [sys.executable, __file__, "--inputs", str(max(1, runs // jobs)), "--folder", str(folder), "--share"]
    processes = [
        subprocess.Popen([*share, "--seed", str(seed + number)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for number in range(jobs)
    ]
    judged, failures = 0, []
    for process in processes:
        said = process.communicate()[0].decode(errors="replace")
        judged += sum(int(number) for number in re.findall(r"number_of_executed_units: (\d+)", said))
        if process.returncode:
            failures.append(said)
    return judged, failures


def main() -> int:
    """Runs as the command line says; 1 when something was not clean."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None, help="default: another each time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="keep the inputs that reach something, and go on from them")
    parser.add_argument("--again", type=Path, help="judge this one input")
    parser.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.again:
        from fuzz_manifests import Fuzzer, file_of

        with Fuzzer() as fuzzer:
            text = args.again.read_bytes()
            print(f"# {file_of(text)}\n{text!r}\n{fuzzer.judge(text, file_of(text))}")  # noqa: T201
        return 0
    seed = random.SystemRandom().randrange(2**31) if args.seed is None else args.seed
    if args.share:
        guide(args.folder, args.inputs, seed)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="kproxy-fuzz-"))
    fill(folder)
    print(f"seed {seed}: {args.inputs} inputs, {args.jobs} processes, {folder}", flush=True)  # noqa: T201
    began = time.monotonic()
    judged, failures = run_all(folder, args.inputs, seed, args.jobs)
    rate, kept = judged / (time.monotonic() - began), len(list(folder.iterdir()))
    for failure in failures:
        print(failure, file=sys.stderr)  # noqa: T201
    print(f"{judged} inputs, {rate:.0f}/s, {kept} that reach something new, {len(failures)} failures")  # noqa: T201
    if not failures and not args.folder:
        shutil.rmtree(folder)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
