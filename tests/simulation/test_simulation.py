"""The proxy through thousands of scripted lives; a seed that fails is run again by KPROXY_SIMULATION_SEED=N.

There are 1,000 seeds, and 10,000 with KPROXY_SOAK=1 (``make soak``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from simulation import Simulation

from kproxy.proxy.agent import Agent
from kproxy.proxy.backends import Condition
from kproxy.proxy.backends.iptables.render import RuleSet
from kproxy.proxy.backends.iptables.writer import IptablesBackend
from kproxy.proxy.changes import Tracker
from kproxy.proxy.runner import Runner
from kproxy.proxy.sources.api import Known

CHUNK = 50

_ONE = os.environ.get("KPROXY_SIMULATION_SEED")
_SEEDS = [int(_ONE)] if _ONE else range(10_000 if os.environ.get("KPROXY_SOAK") else 1_000)


@pytest.fixture(autouse=True)
def _no_log() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def run(seed: int) -> None:
    simulation = Simulation(seed)
    try:
        simulation.run()
    except Exception as error:
        script = "\n".join(simulation.script)
        again = f"seed {seed} failed; again: KPROXY_SIMULATION_SEED={seed} pytest tests/simulation"
        raise AssertionError(f"{script}\n{again}\n{type(error).__name__}: {error}") from error


def run_all(seeds: Iterable[int]) -> None:
    for seed in seeds:
        run(seed)


@pytest.mark.parametrize("first", range(0, len(_SEEDS), CHUNK), ids=lambda first: f"from-{_SEEDS[first]}")
def test_quiet_is_reached_from_anywhere(first: int) -> None:
    run_all(_SEEDS[first : first + CHUNK])


def test_seed_decides_everything() -> None:
    first, second = Simulation(7), Simulation(7)
    first.run()
    second.run()

    assert first.script == second.script
    assert [side.kernel.save() for side in first.sides] == [side.kernel.save() for side in second.sides]


def _does_nothing(*_: Any, **__: Any) -> None:
    """Takes the place of something that matters."""


def _partial_after_failure(original: Callable[..., None]) -> Callable[..., None]:
    def failed(self: Agent, proxier: Any, *arguments: Any, **more: Any) -> None:
        needed = proxier.needs_full_sync
        original(self, proxier, *arguments, **more)
        proxier.needs_full_sync = needed

    return failed


def _no_stale_chains(original: Callable[..., Any]) -> Callable[..., Any]:
    def take(self: RuleSet, delta: Any) -> Any:
        changed = original(self, delta)
        changed.stale.clear()
        return changed

    return take


def _never_gone(original: Callable[..., Any]) -> Callable[..., Any]:
    def replace(self: Known, items: Any) -> Any:
        return [change for change in original(self, items) if change.new is not None]

    return replace


def _unmarked_slices(original: Callable[..., Any]) -> Callable[..., Any]:
    def refresh(self: Tracker, service: Any, changed: Any) -> bool:
        before = set(self._dirty)
        result: bool = original(self, service, changed)
        self._dirty &= before
        return result

    return refresh


def _no_retry(original: Callable[..., Any]) -> Callable[..., Any]:
    def finish(self: Runner, now: float, *, succeeded: bool) -> None:
        original(self, now, succeeded=True)

    return finish


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (Agent, "_has_failed", _partial_after_failure),
        (IptablesBackend, "condition", lambda _: lambda _backend: Condition.INTACT),
        (Agent, "_reconcile_flows", lambda _: _does_nothing),
        (RuleSet, "take", _no_stale_chains),
        (Known, "replace", _never_gone),
        (Tracker, "_refresh", _unmarked_slices),
        (Runner, "finish", _no_retry),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_simulation_notices(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, broken: Callable[[Any], Any]
) -> None:
    """Each of these has to be seen by some of the first seeds, or the simulation proves nothing."""
    monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
    with pytest.raises(AssertionError, match="failed; again"):
        run_all(range(60))
