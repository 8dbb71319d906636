"""Names of hosts outside the cluster, as the cluster file gives them: what the lab's upstream server knows.

Law: pure. It answers for everything: a name that the cluster file does not give does not exist.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from kproxy.cluster.dns.zone import NO_DATA, NO_SUCH_NAME, Answer, Record

TTL = 60
"""Seconds."""


class HostNames:
    """The records of some hosts.

    Args:
        names: addresses of either family by name; names without a final dot, of any case.
    """

    domain = ""
    """It speaks for the root."""

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        self._names = {name.lower(): tuple(addresses) for name, addresses in names.items()}
        self._reverse: dict[str, list[str]] = {}
        for name, addresses in self._names.items():
            for address in addresses:
                self._reverse.setdefault(ipaddress.ip_address(address).reverse_pointer, []).append(name)

    def lookup(self, name: str, record_type: str) -> Answer:
        """What there is of that name, as `Zone.lookup` says it."""
        asked = name.lower().rstrip(".")
        if asked in self._names:
            records = [Record(asked, "AAAA" if ":" in address else "A", address, TTL) for address in self._names[asked]]
            return Answer("NOERROR", tuple(record for record in records if record.type == record_type))
        if asked in self._reverse:
            records = [Record(asked, "PTR", target, TTL) for target in self._reverse[asked]]
            return Answer("NOERROR", tuple(records) if record_type == "PTR" else ())
        has_children = any(known.endswith(f".{asked}") for known in (*self._names, *self._reverse))
        return NO_DATA if has_children or not asked else NO_SUCH_NAME
