"""What tests of real tables share: a network namespace that lives as long as a test, and tools that run in it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kproxy.proxy.backends.iptables.host import Tools


@contextmanager
def network_namespace() -> Iterator[int]:
    """The pid of a process in a network namespace of its own, gone with it at the end."""
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout:
            holder.stdout.close()


def tools_within(real: Tools, namespace: int, folder: Path) -> Tools:
    """Scripts in ``folder`` that run a variant's tools in a namespace."""
    found = []
    for tool in (real.save, real.restore):
        script = folder / Path(tool).name
        script.write_text(f'#!/bin/sh\nexec nsenter -t {namespace} -n {tool} "$@"\n')
        script.chmod(0o755)
        found.append(str(script))
    return Tools(real.variant, found[0], found[1], real.version, real.lock_wait)


def rules_of(text: str) -> dict[tuple[str, str], list[str]]:
    """Rules per table and chain, KUBE- chains without rules too; other things than ours are left out."""
    table, found = "", {}
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":KUBE-") and table != "mangle":
            found.setdefault((table, line[1:].split()[0]), [])
        elif line.startswith("-A ") and "KUBE-" in line:
            found.setdefault((table, line.split()[1]), []).append(line)
    return found
