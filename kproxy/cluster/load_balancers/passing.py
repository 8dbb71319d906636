"""The ``nlb`` in the router's kernel: addresses that are its own, and DNAT to the node ports of healthy nodes.

Law: the whole rule set is written anew as one transaction of nft; connections that are there go on by conntrack.

The client's address stays: answers come back this way, as the router is the nodes' default gateway. Only a node that
dials the balancer itself (ipMode Proxy) is masqueraded: the answer to it would not pass the router.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from kproxy.cluster.load_balancers.claims import NLB, ClaimPort, source_ranges_of, version_of
from kproxy.cluster.load_balancers.serving import Balance
from kproxy.errors import HostError

TABLE: Final = "inet kproxy-load-balancers"
_FAMILY: Final = {4: "ip", 6: "ip6"}
# Before and at the places that iptables calls mangle and nat.
_MANGLE, _DNAT, _SNAT = -150, -100, 100


def rules(balances: Iterable[Balance], node_networks: Sequence[str]) -> str:
    """The router's whole table as `nft -f` takes it.

    Args:
        balances: of kinds that live in the router.
        node_networks: where the nodes are.
    """
    closed: list[str] = []
    spread: list[str] = []
    for one in balances:
        for address in one.addresses:
            for port in one.claim.ports:
                closed += _closed(one, address, port)
                spread += _spread(one, address, port) if one.claim.kind == NLB else ()
    own = [f"ct status dnat {_FAMILY[version_of(network)]} saddr {network} masquerade" for network in node_networks]
    return "\n".join(
        [
            # Deleting needs a table; this makes one if there is none.
            *(f"table {TABLE}", f"delete table {TABLE}", f"table {TABLE} {{"),
            *_chain("source-ranges", "filter", "prerouting", _MANGLE, closed),
            *_chain("spread", "nat", "prerouting", _DNAT, spread),
            *_chain("way-back", "nat", "postrouting", _SNAT, own),
            *("}", ""),
        ]
    )


def _chain(name: str, kind: str, hook: str, priority: int, lines: Iterable[str]) -> Iterator[str]:
    yield f"  chain {name} {{"
    yield f"    type {kind} hook {hook} priority {priority}; policy accept;"
    yield from (f"    {line}" for line in lines)
    yield "  }"


def _match(address: str, port: ClaimPort) -> str:
    return f"{_FAMILY[version_of(address)]} daddr {address} {port.protocol.lower()} dport {port.port}"


def _closed(one: Balance, address: str, port: ClaimPort) -> list[str]:
    """The balancer keeps others out itself: a node port does not know loadBalancerSourceRanges.

    The router is no other: it looks whether HAProxy listens.
    """
    ranges = source_ranges_of(one.claim, version_of(address))
    family = _FAMILY[version_of(address)]
    match = f'iifname != "lo" {_match(address, port)} {family} saddr != {{ {", ".join(ranges)} }}'
    return [f"{match} drop"] if ranges else []


def _spread(one: Balance, address: str, port: ClaimPort) -> list[str]:
    """One new connection to one node; nobody healthy leaves the packet to the router, where nobody listens."""
    version = version_of(address)
    nodes = [node for member in one.members if (node := member.address(version))]
    if not nodes:
        return []
    choice = f"jhash {_FAMILY[version]} saddr" if one.claim.is_sticky else "numgen random"
    places = ", ".join(f"{number} : {node} . {port.node_port}" for number, node in enumerate(nodes))
    return [
        f"{_match(address, port)} dnat {_FAMILY[version]} addr . port to {choice} mod {len(nodes)} map {{ {places} }}"
    ]


def write(text: str) -> None:
    """Replaces the rules in the network namespace of this process.

    Raises:
        HostError: nft is missing or the kernel refused them; the old ones stand.
    """
    _run(["nft", "-f", "-"], text)


def forget_connections(address: str, node: str) -> None:
    """Has packets of connections to a node that serves no more spread anew, but for those that TCP knows as open.

    Args:
        address: the balancer's.
        node: the node's address, of the same family.
    """
    for choice in (["-p", "udp"], ["-p", "tcp", "--state", "SYN_SENT"]):
        # It exits with 1 when there was none.
        _run(["conntrack", "-D", *choice, "--orig-dst", address, "--reply-src", node], fine=(0, 1))


def own_addresses(wanted: Collection[str]) -> None:
    """Ensures that the loopback interface of this process's namespace has just these addresses beside its own.

    Raises:
        HostError: the kernel refused.
    """
    there = {
        word.partition("/")[0]
        for line in _run(["ip", "-oneline", "address", "show", "dev", "lo", "scope", "global"]).splitlines()
        for before, word in zip(line.split(), line.split()[1:], strict=False)
        if before in ("inet", "inet6")
    }
    for verb, addresses in (("replace", set(wanted) - there), ("delete", there - set(wanted))):
        for address in sorted(addresses):
            length = 128 if version_of(address) == 6 else 32
            _run(["ip", "address", verb, f"{address}/{length}", "dev", "lo"])


def _run(argv: Sequence[str], text: str = "", fine: Collection[int] = (0,)) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            list(argv), input=text, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise HostError(f"cannot start {argv[0]}", command=argv, stderr=str(error)) from error
    if done.returncode not in fine:
        raise HostError(f"{argv[0]} failed in the router", command=argv, stderr=done.stderr + text)
    return done.stdout
