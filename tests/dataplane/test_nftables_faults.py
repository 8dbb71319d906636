"""What is left of a real table when writing fails or somebody meddles, what is said, and how it is put right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from nftables_world import backend_in, bare_nodes, contents, nft

from kproxy.errors import TransactionError
from kproxy.proxy.backends import Condition
from kproxy.proxy.backends.nftables import messages as kinds
from kproxy.proxy.backends.nftables.kernel import KernelTable
from kproxy.proxy.backends.nftables.layout import Settings
from kproxy.proxy.backends.nftables.messages import Messages
from kproxy.proxy.backends.nftables.table import Found, Steps, Table
from kproxy.proxy.backends.nftables.writer import Busy, NetlinkWriter
from kproxy.proxy.endpoints import Endpoint, NodeIdentity
from kproxy.proxy.family import Family
from kproxy.proxy.netlink import NETLINK_NETFILTER, Netlink, Refusal, nfnetlink_body
from kproxy.proxy.plan import Circumstances, PlanDelta, PortPlan, plan_port
from kproxy.proxy.services import PortSpec, ServicePortName
from netns.namespace import Namespace, run_in

SETTINGS = Settings(Family.IPV4)
AROUND = Circumstances(NodeIdentity("here"))


def plan(name: str, number: int, *endpoints: str, protocol: str = "TCP", affinity: int = 0, count: int = 0) -> PortPlan:
    spec = PortSpec(
        ServicePortName("default", name, "http", protocol),
        f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}",
        80,
        affinity_seconds=affinity,
    )
    addresses = endpoints or tuple(f"10.244.{number & 255}.{index}:8080" for index in range(count))
    return plan_port(spec, [Endpoint(address) for address in addresses], AROUND)


def delta(*plans: PortPlan, is_full: bool = False) -> PlanDelta:
    return PlanDelta({each.name: each for each in plans}, is_full=is_full)


WEB = plan("web", 50, "10.244.0.2:8080")
IDLE = plan("idle", 60)
BUSIER = plan("web", 50, "10.244.0.2:8080", "10.244.0.3:8080")
STICKY = plan("sticky", 70, "10.244.0.2:8080", "10.244.0.3:8080", affinity=60)


@pytest.fixture(scope="module")
def namespaces() -> Iterator[list[Namespace]]:
    with bare_nodes("tnf", "node", "other") as made:
        yield made


@pytest.fixture
def node(namespaces: list[Namespace]) -> Namespace:
    nft(namespaces[0], "flush", "ruleset")
    return namespaces[0]


def generation(node: Namespace) -> int:
    def ask() -> int:
        with Netlink(NETLINK_NETFILTER) as netlink:
            return KernelTable(netlink, Family.IPV4).generation()

    return run_in(node, ask)


@pytest.mark.root
def test_refused_element_is_named_and_nothing_of_that_transaction_has_happened(node: Namespace) -> None:
    with backend_in(node, SETTINGS) as backend:
        backend.apply(delta(WEB, IDLE, is_full=True))
        nft(node, "delete", "element", "ip", "kube-proxy", "service-ips", "{ 10.96.0.50 . tcp . 80 }")
        before = contents(node, Family.IPV4)

        with pytest.raises(
            TransactionError, match=r"refused element \{ 10.96.0.50 . tcp . 80 \} of service-ips: No such"
        ):
            backend.apply(delta(BUSIER, plan("idle", 60, "10.244.0.9:80")))

        assert contents(node, Family.IPV4) == before
        backend.apply(delta(BUSIER, IDLE, is_full=True))
    assert "10.96.0.50 . tcp . 80 . 1 : 10.244.0.3 . 8080" in nft(node, "list", "map", "ip", "kube-proxy", "endpoints")


@pytest.mark.root
def test_missing_table_is_noticed_and_written_anew(node: Namespace) -> None:
    with backend_in(node, SETTINGS) as backend:
        backend.apply(delta(WEB, is_full=True))
        assert backend.condition() is Condition.INTACT
        whole = contents(node, Family.IPV4)
        nft(node, "delete", "table", "ip", "kube-proxy")

        assert backend.condition() is Condition.LOST
        with pytest.raises(TransactionError, match="No such file or directory"):
            backend.apply(delta(BUSIER))
        backend.apply(delta(WEB, is_full=True))

    assert contents(node, Family.IPV4) == whole


FOREIGN = {
    "a map of another type": "add map ip kube-proxy service-ips { type ipv4_addr : verdict ; }",
    "a base chain elsewhere": "add chain ip kube-proxy nat-output { type nat hook output priority -50 ; }",
    "a base chain of no kind of ours": "add chain ip kube-proxy extra { type filter hook input priority 5 ; }",
    "other chains and sets": "add chain ip kube-proxy service-OLD\nadd set ip kube-proxy old { type ipv4_addr ; }",
}


@pytest.mark.root
@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_whatever_is_in_a_table_of_that_name_goes(node: Namespace, namespaces: list[Namespace], text: str) -> None:
    nft(node, "-f", "-", text=f"add table ip kube-proxy\n{text}\n")

    for namespace in (node, namespaces[1]):
        with backend_in(namespace, SETTINGS) as backend:
            backend.apply(delta(WEB, IDLE, is_full=True))

    assert contents(node, Family.IPV4) == contents(namespaces[1], Family.IPV4)


class Raced(NetlinkWriter):
    """Somebody changes a rule set each time that we have looked."""

    looks = 0

    def found(self) -> tuple[Found, int | None]:
        found = super().found()
        self.looks += 1
        super().write(Steps(chains={f"other-{self.looks}": ()}), Table(SETTINGS), Found(exists=True), None)
        return found


@pytest.mark.root
def test_somebody_else_who_writes_meanwhile_makes_us_look_again(node: Namespace) -> None:
    with backend_in(node, SETTINGS) as backend:
        backend.apply(delta(WEB, is_full=True))
        whole = contents(node, Family.IPV4)
    with backend_in(node, SETTINGS, Raced) as raced:
        raced.apply(delta(WEB, is_full=True))

    left = contents(node, Family.IPV4)
    # the last look was not guarded any more, so what came after it may be there: one chain, and no more
    assert len(left.chains) - len(whole.chains) <= 1
    assert left.elements == whole.elements


@pytest.mark.root
def test_clients_stay_with_their_endpoints_through_a_full_sync(node: Namespace) -> None:
    with backend_in(node, SETTINGS) as backend:
        backend.apply(delta(STICKY, is_full=True))
        sets = [name for name in contents(node, Family.IPV4).sets if name.startswith("affinity-")]
        for name in sets:
            nft(node, "add", "element", "ip", "kube-proxy", name, "{ 192.0.2.1 timeout 1h }")
    with backend_in(node, SETTINGS) as restarted:
        restarted.apply(delta(plan("sticky", 70, "10.244.0.2:8080", affinity=60), is_full=True))

    assert len(sets) == 2
    assert [name for name in contents(node, Family.IPV4).sets if name.startswith("affinity-")] == [
        name for name in sets if "10.244.0.2" in name
    ]
    assert "192.0.2.1" in nft(node, "list", "sets", "ip")


@pytest.mark.root
def test_large_table_is_one_transaction(node: Namespace) -> None:
    """Far more than a socket's buffer usually takes."""
    plans = [plan(f"web{number}", number, count=10) for number in range(3000)]
    with backend_in(node, SETTINGS) as backend:
        before = generation(node)
        backend.apply(delta(*plans, is_full=True))

        assert generation(node) == before + 1
        assert len(contents(node, Family.IPV4).elements["endpoints"]) == 30000
        backend.apply(delta(plan("web7", 7, "10.244.7.1:1")))
        assert generation(node) == before + 2


class OldKernel(NetlinkWriter):
    """A kernel that lets go of chains only after the transaction (before Linux 6.2), until it is told not to."""

    is_holding = True

    def write(self, steps: Steps, table: Table, found: Found, generation: int | None) -> bool:
        if steps.unused_chains and self.is_holding:
            raise Busy("chain cluster-1: Device or resource busy")
        return super().write(steps, table, found, generation)


LEFT_ONE = plan("sticky", 70, "10.244.0.2:8080", affinity=60)
LEFT_BEHIND = {
    "a shared chain": ([WEB], [BUSIER]),
    "a shared chain, in use again": ([WEB], [BUSIER, WEB]),
    "an endpoint's own chain and set": ([STICKY], [LEFT_ONE]),
    "an endpoint's own chain and set, in use again": ([STICKY], [LEFT_ONE, STICKY]),
    "a Service's own chains, in use again": ([STICKY], [plan("sticky", 70, count=1), STICKY]),
    "all but one, in use again": ([WEB, STICKY], [LEFT_ONE, BUSIER, STICKY]),
    "in use again, and left again": ([STICKY], [LEFT_ONE, STICKY, LEFT_ONE]),
}


@pytest.mark.root
@pytest.mark.parametrize(("first", "then"), LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_chains_that_the_kernel_still_holds_are_deleted_later_unless_they_are_in_use_again(
    node: Namespace, namespaces: list[Namespace], first: list[PortPlan], then: list[PortPlan]
) -> None:
    nft(namespaces[1], "flush", "ruleset")
    with backend_in(node, SETTINGS, OldKernel) as backend, pytest.MonkeyPatch.context() as patched:
        backend.apply(delta(*first, is_full=True))
        for each in then:
            backend.apply(delta(each))
        patched.setattr(OldKernel, "is_holding", False)
        backend.apply(delta(IDLE))
    with backend_in(namespaces[1], SETTINGS) as fresh:
        fresh.apply(delta(*{each.name: each for each in (*first, *then, IDLE)}.values(), is_full=True))

    after, expected = (contents(each, Family.IPV4, has_numbers=False) for each in (node, namespaces[1]))
    assert after == expected


LAST = 2**32 - 1


@pytest.mark.root
@pytest.mark.parametrize("before", range(LAST - 5, LAST + 1))
def test_sequence_numbers_of_messages_begin_again(
    node: Namespace, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = Messages(Family.IPV4)
    wanted = [say.add_table()[:3], say.add_chain("one")[:3]]
    missing = (kinds.SUBSYSTEM << 8) | kinds.GET_TABLE

    def exchange() -> tuple[Refusal | None, ...]:
        with Netlink(NETLINK_NETFILTER) as netlink:
            monkeypatch.setattr(netlink, "_sequence", before)
            # an answer that nobody reads
            netlink._socket.send(netlink._message(missing, 0, say.delete_table().body))
            taken = netlink.batch(kinds.SUBSYSTEM, wanted)
            assert "one" in dict(KernelTable(netlink, Family.IPV4).chains())
            netlink._socket.send(netlink._message(missing, 0, nfnetlink_body(1)))
            return taken, netlink.batch(kinds.SUBSYSTEM, [*wanted, say.flush_chain("two")[:3]])

    taken, refused = run_in(node, exchange)

    assert taken is None
    assert refused is not None
    assert refused.position == 2
