"""Negative controls: with wrong expectations, without a proxy, or with a proxy that errs, the packets must fail."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from corpus import Case, Expectation, Flow, Step, case, endpoint, version_of
from playing import Record, Stage, play
from rule_text import difference

pytestmark = pytest.mark.root

NEVER = {4: "10.180.77.77", 6: "fd00:10:180:77::77"}
OTHER_VERDICT = {"": "reject", "reject": "drop", "drop": "reject", "passthrough": "drop", "accept": "reject"}


def another_verdict(flow: Flow) -> Expectation:
    return Expectation(verdict=OTHER_VERDICT[flow.expect.verdict])


def passthrough(flow: Flow) -> Expectation | None:
    return Expectation(verdict="passthrough") if flow.expect.verdict != "passthrough" else None


def an_endpoint_more(flow: Flow) -> Expectation | None:
    never = endpoint(NEVER[version_of(flow.address)], 80)
    return replace(flow.expect, endpoints=flow.expect.endpoints | {never}) if flow.expect.endpoints else None


def an_endpoint_less(flow: Flow) -> Expectation | None:
    fewer = frozenset(sorted(flow.expect.endpoints)[1:])
    return replace(flow.expect, endpoints=fewer) if fewer else None


def other_source(flow: Flow) -> Expectation | None:
    if not flow.expect.endpoints:
        return None
    return replace(flow.expect, masq={one: not flow.expect.is_masqueraded(one) for one in flow.expect.endpoints})


WRONG_EXPECTATIONS = {
    f"{make.__name__.replace('_', '-')}-{name}": (make, name)
    for make in (another_verdict, passthrough, an_endpoint_more, an_endpoint_less, other_source)
    for name in ("overall-rules", "own-ipv6")
}
WRONG_EXPECTATIONS["another-verdict-trace-packet-v4"] = (another_verdict, "trace-packet-v4")


@pytest.mark.parametrize(("make", "name"), WRONG_EXPECTATIONS.values(), ids=WRONG_EXPECTATIONS)
def test_wrong_expectation_fails(make: Callable[[Flow], Expectation | None], name: str) -> None:
    steps = [replace(step, flows=tuple(wronged(step, make))) for step in case(name).steps]
    record = play(replace(case(name), steps=tuple(steps)), "legacy")

    assert record.flows > 0
    assert {flow for _, flow in record.wrong} == {flow.name for step in steps for flow in step.flows}
    assert "KUBE-SERVICES" in record.report()
    assert "100.64.1.1" in record.report()


def wronged(step: Step, make: Callable[[Flow], Expectation | None]) -> Iterator[Flow]:
    for flow in step.flows:
        expect = make(flow)
        if expect is not None:
            yield replace(flow, expect=expect)


@pytest.mark.parametrize("variant", ["legacy", "nft"])
@pytest.mark.parametrize("name", ["overall-rules", "trace-packet-v4", "own-ipv6", "no-endpoints-reject"])
def test_without_a_proxy_every_flow_that_needs_one_fails(name: str, variant: str) -> None:
    record = play(case(name), variant, has_proxy=False)

    assert {flow for _, flow in record.wrong} == {
        flow.name for flow in case(name).flows if flow.expect.verdict != "passthrough"
    }


def changed(one: Case, change: Callable[[dict], None]) -> Case:
    """The case with other Services."""
    steps = []
    for step in one.steps:
        objects = copy.deepcopy(step.objects)
        for obj in objects:
            if obj["kind"] == "Service":
                change(obj["spec"])
        steps.append(replace(step, objects=objects))
    return replace(one, steps=tuple(steps))


def flows_of(record: Record) -> set[str]:
    return {flow for _, flow in record.wrong}


def test_clients_that_do_not_stick_are_noticed() -> None:
    record = play(changed(case("own-affinity-tcp"), lambda spec: spec.update(sessionAffinity="None")), "legacy")

    assert flows_of(record) == {
        "every client sticks, clients differ",
        "external clients stick on the node port",
        "nobody moves",
        "same choice through the node port",
    }


def test_clients_that_forget_are_noticed() -> None:
    def forget(stage: Stage, step: Step) -> None:
        if step.name == "endpoint added":
            stage.forget_affinity()

    record = play(case("own-affinity-tcp"), "legacy", meddle=forget)

    assert "nobody moves" in flows_of(record)


def test_uneven_choice_is_noticed() -> None:
    def prefer(stage: Stage, step: Step) -> None:
        stage.edit(4, "nat", lambda text: text.replace("--probability 0.50000000000", "--probability 0.10000000000"))

    record = play(case("own-distribution"), "legacy", meddle=prefer)

    assert record.wrong.keys() == {
        (step.name, flow.name) for step in case("own-distribution").steps for flow in step.flows
    }


def test_cut_connection_is_noticed() -> None:
    def cut(stage: Stage, step: Step) -> None:
        if step.name == "endpoint replaced":
            stage.run("conntrack", "-F")

    one = case("own-tcp-survives")
    record = play(replace(one, steps=one.steps[:2]), "legacy", meddle=cut)

    assert {"old connection of the pod", "old connection from outside"} <= flows_of(record)


def test_stale_conntrack_entry_is_noticed() -> None:
    """Whoever keeps sending from one port stays with the old endpoint unless its entry is deleted."""
    one = case("own-udp-endpoint-replaced")
    kept = replace(one.steps[0], name="objects do not change", flows=one.steps[1].flows)
    record = play(replace(one, steps=(one.steps[0], kept)), "legacy")

    assert flows_of(record) == {flow.name for flow in kept.flows}


@pytest.mark.parametrize("variant", ["legacy", "nft"])
def test_one_changed_rule_is_noticed(variant: str) -> None:
    edits = {
        "deleted": lambda text: text.replace("-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n", ""),
        "changed": lambda text: text.replace("--probability 0.50000000000", "--probability 0.49000000020"),
        "added": lambda text: text.replace("COMMIT", "-A KUBE-SERVICES -d 1.1.1.1 -j RETURN\nCOMMIT"),
        "stale chain": lambda text: text.replace("*nat\n", "*nat\n:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]\n"),
    }
    found: dict[str, list[str]] = {}
    one = case("overall-rules")
    step = replace(one.steps[0], flows=())

    def meddle(stage: Stage, _: Step) -> None:
        for name, edit in edits.items():
            before = stage.saved(4)
            stage.edit(4, "nat", edit)
            found[name] = difference(one.recorded_rules(step, 4), stage.saved(4))
            stage.edit(4, "nat", lambda _, before=before: nat_of(before))

    play(replace(one, steps=(step,)), variant, meddle=meddle)

    assert {name: bool(lines) for name, lines in found.items()} == dict.fromkeys(edits, True)


def nat_of(saved: str) -> str:
    return "*nat" + saved.partition("*nat")[2].partition("COMMIT")[0] + "COMMIT\n"
