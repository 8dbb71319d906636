"""Writes one family's table over nfnetlink: one batch per sync, whole or not at all.

The batch of a full sync empties the table and fills it anew in one step; only what the kernel itself put in, the
clients that stay with their endpoints, is left as it is.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from typing import Protocol

from kproxy.errors import HostError, TransactionError
from kproxy.proxy.backends import Condition
from kproxy.proxy.backends.nftables import messages as kinds
from kproxy.proxy.backends.nftables.containers import key_text
from kproxy.proxy.backends.nftables.kernel import KernelTable
from kproxy.proxy.backends.nftables.layout import Settings
from kproxy.proxy.backends.nftables.messages import Messages, Request
from kproxy.proxy.backends.nftables.steps import in_order
from kproxy.proxy.backends.nftables.table import Found, Steps, Table
from kproxy.proxy.family import Family
from kproxy.proxy.netlink import NETLINK_NETFILTER, DumpInterrupted, Netlink, Refusal, attributes
from kproxy.proxy.plan import PlanDelta

_LOG = logging.getLogger(__name__)

_ATTEMPTS = 5
"""How often a full sync looks at the table again because somebody changed a rule set meanwhile; then it just writes."""


_TOO_LARGE = (
    "nothing was written: a larger net.core.wmem_max lets it through, where the proxy may not go beyond it itself"
)


class Busy(TransactionError):
    """A chain cannot be deleted yet: kernels before 6.2 let go of what led to it only after the transaction."""


class Writer(Protocol):
    """Something that carries steps out."""

    def found(self) -> tuple[Found, int | None]:
        """What is in the kernel, and of which generation it is.

        Raises:
            HostError: that cannot be told.
        """

    def write(self, steps: Steps, table: Table, found: Found, generation: int | None) -> bool:
        """Carry steps out; returns False when the generation has passed.

        Raises:
            Busy: a chain that is to be deleted is still held; nothing has changed.
            TransactionError: the kernel refused; nothing has changed.
            HostError: it could not be asked.
        """

    def exists(self) -> bool:
        """Whether the table is there.

        Raises:
            HostError: that cannot be told.
        """

    def close(self) -> None:
        """Give back what is held open."""


class NftablesBackend:
    """One family's table of this network namespace.

    Args:
        settings: what rules depend on beside plans.
        writer: carries the steps out; by default over nfnetlink.
    """

    def __init__(self, settings: Settings, writer: Writer | None = None) -> None:
        self._table = Table(settings)
        self._writer = writer or NetlinkWriter(settings.family)
        self._found = Found()
        self._lingering: set[str] = set()

    def apply(self, delta: PlanDelta) -> None:
        """Make the kernel hold what the delta says.

        Raises:
            TransactionError: the kernel refused; nothing has changed.
            HostError: the kernel could not be asked.
        """
        if delta.is_full:
            self._apply_all(delta)
            return
        steps = self._table.take(delta)
        self._lingering -= steps.chains.keys()
        if not steps.is_empty:
            self._write(steps, Found(exists=True), None)
        self._delete_lingering()

    def _apply_all(self, delta: PlanDelta) -> None:
        for attempt in range(_ATTEMPTS):
            self._lingering.clear()
            self._found, generation = self._writer.found()
            steps = self._table.take(delta, self._found)
            if self._write(steps, self._found, generation if attempt + 1 < _ATTEMPTS else None):
                return

    def _write(self, steps: Steps, found: Found, generation: int | None) -> bool:
        try:
            return self._writer.write(steps, self._table, found, generation)
        except Busy as error:
            _LOG.debug("chains are deleted later: %s", error)
            self._lingering |= steps.unused_chains
            # emptied all the same: their rules use sets that go now, and new ones may come before they are deleted
            steps.chains.update(dict.fromkeys(steps.unused_chains, ()))
            steps.rewritten |= steps.unused_chains
            steps.unused_chains.clear()
            return self._writer.write(steps, self._table, found, generation)

    def _delete_lingering(self) -> None:
        """Chains that the kernel held when they were left."""
        if not self._lingering:
            return
        gone, self._lingering = self._lingering, set()
        try:
            self._writer.write(Steps(unused_chains=gone), self._table, Found(exists=True), None)
        except Busy:
            self._lingering = gone

    def close(self) -> None:
        """Give back what the writer holds open; the table stays."""
        self._writer.close()

    def earlier_udp_frontends(self) -> frozenset[tuple[str, int]]:
        """UDP frontends in the kernel before the last full sync, as (address, port); a node port's address is empty."""
        return self._found.udp_frontends

    def condition(self) -> Condition:
        """How much of what was written is left, told by the table itself: nobody deletes it piece by piece.

        Raises:
            HostError: the kernel could not be asked.
        """
        return Condition.INTACT if self._writer.exists() else Condition.LOST


class NetlinkWriter:
    """Writes batches of nfnetlink messages.

    Args:
        family: whose table.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._messages = Messages(family)
        self._netlink = Netlink(NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def found(self) -> tuple[Found, int | None]:
        """What is in the kernel, and of which generation it is.

        Raises:
            HostError: that cannot be told.
        """
        kernel = KernelTable(self._netlink, self._family)
        try:
            for _ in range(_ATTEMPTS):
                generation = kernel.generation()
                try:
                    return kernel.found(), generation
                except DumpInterrupted:
                    continue
        except OSError as error:
            raise HostError(f"nf_tables cannot be read: {error.strerror}") from error
        raise HostError("the nftables table changed whenever it was listed")

    def exists(self) -> bool:
        """Whether the table is there.

        Raises:
            HostError: that cannot be told.
        """
        try:
            return KernelTable(self._netlink, self._family).exists()
        except OSError as error:
            raise HostError(f"nf_tables cannot be read: {error.strerror}") from error

    def write(self, steps: Steps, table: Table, found: Found, generation: int | None) -> bool:
        """Carry steps out in one batch; returns False when the generation has passed.

        Raises:
            Busy: a chain that is to be deleted is still held; nothing has changed.
            TransactionError: the kernel refused; nothing has changed.
            HostError: the socket failed.
        """
        requests = list(in_order(steps, table, found, self._messages))
        try:
            refusal = self._netlink.batch(kinds.SUBSYSTEM, [request[:3] for request in requests], generation)
        except OSError as error:
            left = _TOO_LARGE if error.errno in (errno.EMSGSIZE, errno.ENOBUFS) else ""
            reason = f"a transaction of {len(requests)} netlink messages was not taken: {error.strerror}"
            raise HostError(reason, left=left) from error
        if refusal is None:
            return True
        if refusal.code == errno.ERESTART and generation is not None:
            return False
        raise _refused(refusal, requests, table)


def _refused(refusal: Refusal, requests: Sequence[Request], table: Table) -> TransactionError:
    why = os.strerror(refusal.code)
    if not 0 <= refusal.position < len(requests):
        return TransactionError(f"nf_tables refused the transaction: {why}")
    request = requests[refusal.position]
    about = _element_at(request, refusal.offset, table) or request.about
    if request.kind == kinds.DELETE_CHAIN and refusal.code == errno.EBUSY:
        return Busy(f"nf_tables: {about}: {why}")
    return TransactionError(f"nf_tables refused {about}: {why}", line=refusal.position + 1, text=about)


def _element_at(request: Request, offset: int, table: Table) -> str:
    """The element that an offset into a request means, in words; empty when it means none."""
    if request.kind not in (kinds.NEW_ELEMENT, kinds.DELETE_ELEMENT) or offset < 0:
        return ""
    container = table.container(request.about)
    for start, element in kinds.elements_in(request.body):
        if start <= offset < start + len(element):
            key = attributes(attributes(element[4:])[kinds.ELEMENT_KEY])[1]
            return f"element {{ {key_text(container.key, key)} }} of {container.name}"
    return ""
