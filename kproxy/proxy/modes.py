"""The proxy's modes: what each needs of the host, the backends it makes, and what it takes away of the other.

What the other mode left goes once this one has written everything, family by family: until then it still serves, and
connections that are under way have their addresses in conntrack, whoever chose them.
"""

from __future__ import annotations

import logging
import os
import platform
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from kproxy.errors import HostError
from kproxy.proxy import sysctls
from kproxy.proxy.backends import Backend, Condition
from kproxy.proxy.backends.iptables.host import Variant, choose_variant, features, find_tools, has_ipv6, run_tool
from kproxy.proxy.backends.iptables.python_iptables import backend_class
from kproxy.proxy.backends.iptables.rules import COUNTERS
from kproxy.proxy.backends.iptables.writer import clean_up
from kproxy.proxy.backends.nftables import names as nftables
from kproxy.proxy.backends.nftables.messages import address_family
from kproxy.proxy.backends.nftables.text import NftWriter
from kproxy.proxy.backends.nftables.writer import NetlinkWriter, NftablesBackend
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.metrics import Metrics
from kproxy.proxy.netlink import delete_nft_table, make_counters
from kproxy.proxy.node import NodeFacts
from kproxy.proxy.plan import PlanDelta
from kproxy.proxy.setup import has_localhost_node_ports, iptables_settings, nftables_settings
from kproxy.proxy.stale_flows import Place

_LOG = logging.getLogger(__name__)

_BOTH: tuple[Variant, ...] = ("legacy", "nft")
_NFTABLES_SINCE = (5, 13)
"""The first kernel that mode nftables works on (kube-proxy: nftables/supported.go)."""
_SKIP_KERNEL_CHECK = "KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK"


class FlowAware(Backend, Protocol):
    """A backend that knows which UDP frontends another process had programmed."""

    def earlier_udp_frontends(self) -> Iterable[Place]:
        """Frontends in the kernel before the last full sync; a node port's address is empty."""


class Mode(Protocol):
    """One of --proxy-mode."""

    @property
    def title(self) -> str:
        """What the log calls it."""

    def backend(self, node: NodeFacts, family: Family, metrics: Metrics, *, is_primary: bool) -> FlowAware:
        """Where the plans of a family go.

        Raises:
            HostError: the host does not have what that takes.
        """


class IptablesMode:
    """Rules of iptables.

    Raises:
        HostError: no iptables is installed.
        UserError: the writer does not work with this host's variant.
    """

    def __init__(self, config: ProxyConfig) -> None:
        self._config = config
        self._variant = choose_variant(config.iptables_variant)
        self._make = backend_class(config.iptables_writer, self._variant)
        self._counters = make_counters(COUNTERS)

    @property
    def title(self) -> str:
        """What the log calls it."""
        return f"iptables-{self._variant}"

    def backend(self, node: NodeFacts, family: Family, metrics: Metrics, *, is_primary: bool) -> FlowAware:
        """Where the plans of a family go.

        Raises:
            HostError: the host does not have the family, or the kernel no nat table for it.
        """
        _require_family(family)
        tools = find_tools(self._variant, family)
        if not is_primary:
            run_tool((tools.save, "-t", "nat"))
        if has_localhost_node_ports(self._config, node, family):
            sysctls.route_localnet()
        settings = iptables_settings(self._config, node, family, features(tools, self._counters))
        backend = self._make(tools, settings, partial(metrics.rules, family.value))
        return TakingOver(backend, partial(delete_nftables, family))


class NftablesMode:
    """A table of nf_tables for each family.

    Raises:
        HostError: the kernel is too old.
    """

    title = "nftables"

    def __init__(self, config: ProxyConfig) -> None:
        self._config = config
        release = platform.release()
        numbers = re.match(r"(\d+)\.(\d+)", release)
        version = tuple(map(int, numbers.groups())) if numbers else ()
        if version < _NFTABLES_SINCE and not os.environ.get(_SKIP_KERNEL_CHECK):
            raise HostError(f"mode nftables needs Linux 5.13 or newer, and this is {release}")

    def backend(self, node: NodeFacts, family: Family, metrics: Metrics, *, is_primary: bool) -> FlowAware:
        """Where the plans of a family go.

        Raises:
            HostError: the host does not have the family, or the kernel no nf_tables.
        """
        _require_family(family)
        writer = NftWriter(family) if self._config.nftables_writer == "nft" else NetlinkWriter(family)
        writer.exists()  # asks whether there is nf_tables at all
        backend = NftablesBackend(nftables_settings(self._config, node, family), writer)
        return TakingOver(backend, partial(delete_iptables, family))


def mode_of(config: ProxyConfig) -> Mode:
    """The mode that the configuration asks for.

    Raises:
        HostError: the host does not have what that takes.
        UserError: the configuration does not go with this host.
    """
    return NftablesMode(config) if config.is_nftables else IptablesMode(config)


class TakingOver:
    """A backend that takes the other mode's rules away once its own are all written.

    Args:
        backend: writes.
        take_away: raises HostError if it cannot.
    """

    def __init__(self, backend: FlowAware, take_away: Callable[[], None]) -> None:
        self._backend = backend
        self._take_away: Callable[[], None] | None = take_away

    def apply(self, delta: PlanDelta) -> None:
        """Make the kernel hold what the delta says.

        Raises:
            HostError: it was refused.
        """
        self._backend.apply(delta)
        if self._take_away is None:
            return
        try:
            self._take_away()
        except HostError as error:
            _LOG.error("what another mode left cannot be taken away: %s", error)
        self._take_away = None

    def condition(self) -> Condition:
        """How much of what was written is left.

        Raises:
            HostError: that cannot be told.
        """
        return self._backend.condition()

    def earlier_udp_frontends(self) -> Iterable[Place]:
        """Frontends in the kernel before the last full sync; a node port's address is empty."""
        return self._backend.earlier_udp_frontends()


def delete_nftables(family: Family) -> None:
    """Delete the table of mode nftables of a family.

    Raises:
        HostError: it is there and cannot be deleted.
    """
    if delete_nft_table(address_family(family), nftables.TABLE):
        _LOG.info("%s: deleted the nftables table %r", family.value, nftables.TABLE)


def delete_iptables(family: Family, variants: Iterable[Variant] = _BOTH) -> None:
    """Delete the chains of mode iptables of a family, as far as the tools are installed.

    Raises:
        HostError: they are there and cannot be deleted.
    """
    for variant in variants:
        try:
            tools = find_tools(variant, family)
            run_tool((tools.save,))
        except HostError as error:  # not installed, or the kernel has no such tables
            _LOG.debug("%s: no iptables-%s: %s", family.value, variant, error)
            continue
        clean_up(tools)


def _require_family(family: Family) -> None:
    if family is Family.IPV6 and not has_ipv6():
        raise HostError("this network namespace has no IPv6")
