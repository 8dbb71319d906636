"""The fake tools against the real ones: the same inputs, the same tables afterwards, the same failures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_iptables import BUILT_IN, FakeIptables
from iptables_world import network_namespace, tools_within

from kproxy.errors import HostError
from kproxy.proxy.backends.iptables.host import Tools, find_tools, run_tool
from kproxy.proxy.family import Family

pytestmark = pytest.mark.root

CHAINS = ("KUBE-SVC-A", "KUBE-SEP-B", "KUBE-SERVICES", "MINE")
RULES = {
    "filter": ("-p udp -j ACCEPT", "-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j DROP"),
    "nat": (
        '-d 10.96.0.1/32 -p tcp -m comment --comment "default/a:b cluster IP" -m tcp --dport 80 -j RETURN',
        "-p tcp -m tcp -j DNAT --to-destination 10.244.0.2:8080",
        "-j MARK --set-xmark 0x4000/0x4000",
    ),
    "mangle": ("-p udp -j ACCEPT",),
}


@pytest.fixture(params=["legacy", "nft"])
def tools(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tools]:
    """One variant's tools for IPv4, each running in a namespace that lives as long as the test."""
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    with network_namespace() as pid:
        yield tools_within(find_tools(request.param, Family.IPV4), pid, tmp_path)


def some_input(rng: random.Random) -> str:
    """A few tables with lines that mostly make sense."""
    lines = []
    for table in rng.sample(["mangle", "filter", "nat"], rng.randint(1, 3)):
        known = list(CHAINS)
        lines.append(f"*{table}")
        lines += [f":{chain} - [0:0]" for chain in rng.sample(CHAINS, rng.randint(1, 4))]
        for _ in range(rng.randint(0, 6)):
            chain = rng.choice([*known, *known, BUILT_IN[table][2]])
            jump = f"-j {rng.choice(known)}"
            rule = rng.choice([*RULES[table], jump])
            lines.append(
                rng.choice([f"-A {chain} {rule}"] * 4 + [f"-I {chain} 1 {rule}", f"-D {chain} {rule}", f"-F {chain}"])
            )
        lines += [f"-X {chain}" for chain in rng.sample(CHAINS, rng.choice([0, 0, 0, 1]))]
        if rng.random() < 0.05:
            lines.append("-A KUBE-SERVICES --bogus 1 -j ACCEPT")
        lines += ["COMMIT"] * (rng.random() > 0.03)
    return "\n".join((*lines, ""))


def all_rules_of(saved: str) -> dict[tuple[str, str], list[str]]:
    """Rules per table and chain; tables that nobody ever named are as good as empty ones."""
    table, found = "", {(name, chain): [] for name, chains in BUILT_IN.items() for chain in chains}
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            found.setdefault((table, line[1:].split()[0]), [])
        elif line.startswith("-A "):
            found[table, line.split()[1]].append(line)
    return found


def has_loop(saved: str) -> bool:
    """The kernel refuses chains that lead back to themselves; the proxy never writes any, and the fake never looks."""
    rules = all_rules_of(saved)

    def reaches(table: str, chain: str, seen: tuple[str, ...]) -> bool:
        if chain in seen:
            return True
        targets = [rule.rpartition("-j ")[2].split()[0] for rule in rules.get((table, chain), ()) if " -j " in rule]
        return any(reaches(table, target, (*seen, chain)) for target in targets if (table, target) in rules)

    return any(reaches(table, chain, ()) for table, chain in rules)


@pytest.mark.parametrize("seed", range(4))
def test_same_inputs_leave_the_same_tables(tools: Tools, seed: int) -> None:
    rng = random.Random(seed)
    fake = FakeIptables()
    outcomes = set()
    for _ in range(40):
        text = some_input(rng)
        before = {name: table.copy() for name, table in fake.tables.items()}
        does_fail = _fails(lambda text=text: fake.run(("restore", "--noflush"), text))  # type: ignore[misc]
        if has_loop(fake.save()):
            fake.tables = before
            continue

        assert _fails(lambda text=text: run_tool((tools.restore, "--noflush"), text)) == does_fail, text  # type: ignore[misc]
        assert all_rules_of(run_tool((tools.save,))) == all_rules_of(fake.save()), text
        outcomes.add(does_fail)
    assert outcomes == {True, False}


def _fails(call: object) -> bool:
    try:
        call()  # type: ignore[operator]
    except HostError:
        return True
    return False


@pytest.mark.parametrize(
    ("refused", "line"),
    [
        ("*nat\n:A - [0:0]\n-A A -j B\nCOMMIT\n", 3),
        ("*nat\n:A - [0:0]\n-A A --bogus 1\nCOMMIT\n", 3),
        ("*nat\n-A NOWHERE -j ACCEPT\nCOMMIT\n", 2),
    ],
)
def test_refused_line_is_the_same(tools: Tools, refused: str, line: int) -> None:
    for run in (FakeIptables().run, run_tool):
        with pytest.raises(HostError) as failed:
            run((tools.restore, "--noflush"), refused)
        if tools.variant == "legacy" or run is not run_tool:
            assert str(line) in failed.value.stderr
