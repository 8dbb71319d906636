"""Which node a pod gets: filters first, then the best of what is left, as Kubernetes' scheduler does it.

Law: pure but for the picture of the cluster, which its owner keeps up to date; a look at a pod costs work for the
nodes, and for other pods only where pod affinity asks for it. Words and rules: Kubernetes, pkg/scheduler.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from kproxy.api.labels import matches
from kproxy.api.types import LabelSelector, Object
from kproxy.cluster.controllers.ownership import controller_of
from kproxy.cluster.controllers.placement import counted_reasons, objection, preference, untolerated

K = TypeVar("K")

_AFFINITY: Final = "node(s) didn't match pod affinity rules"
_ANTI_AFFINITY: Final = "node(s) didn't match pod anti-affinity rules"
_OTHERS_ANTI_AFFINITY: Final = "node(s) didn't satisfy existing pods anti-affinity rules"
_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED: Final = "preferredDuringSchedulingIgnoredDuringExecution"


@dataclass(frozen=True)
class Choice:
    """What came of a look at a pod.

    Attributes:
        node: where it goes; None when nowhere.
        why_not: the scheduler's sentence, when it goes nowhere.
    """

    node: str | None
    why_not: str = ""


@dataclass
class Picture:
    """The nodes, and the pods that are on them or will be.

    Attributes:
        nodes: by name.
        namespaces: labels of each namespace.
    """

    nodes: dict[str, Object] = field(default_factory=dict)
    namespaces: dict[str, Mapping[str, str]] = field(default_factory=dict)
    _pods: dict[str, tuple[Object, str]] = field(default_factory=dict)
    _totals: Counter[str] = field(default_factory=Counter)
    _siblings: Counter[tuple[str, str]] = field(default_factory=Counter)
    _repelling: dict[str, tuple[Object, str]] = field(default_factory=dict)

    def put(self, pod: Object, node: str) -> None:
        """Counts the pod as being on the node."""
        uid = pod["metadata"]["uid"]
        self.remove(uid)
        self._pods[uid] = pod, node
        self._totals[node] += 1
        self._siblings[_family(pod), node] += 1
        if _terms(pod, "podAntiAffinity", _REQUIRED):
            self._repelling[uid] = pod, node

    def remove(self, uid: str) -> bool:
        """No longer counts the pod; whether it was counted."""
        pod, node = self._pods.pop(uid, (None, ""))
        if pod is None:
            return False
        _count_down(self._totals, node)
        _count_down(self._siblings, (_family(pod), node))
        self._repelling.pop(uid, None)
        return True

    def choose(self, pod: Object) -> Choice:
        """The node for the pod.

        Among those that may have it, the one that its preferences speak for most, then the one with the fewest pods of
        its kind, with the fewest pods at all, and the first by name, ``node2`` before ``node10``, so that the same
        manifests give the same cluster.
        """
        if not self.nodes:
            return Choice(None, "no nodes available to schedule pods")
        neighbours = _Neighbours(self, pod)
        fitting, reasons = [], []
        for name, node in self.nodes.items():
            reason = objection(pod, node) or neighbours.objection(node)
            if reason:
                reasons.append(reason)
            else:
                fitting.append(name)
        if not fitting:
            return Choice(None, counted_reasons(reasons, len(self.nodes)))
        family = _family(pod)

        def rank(name: str) -> tuple[float, int, int, list[tuple[int, str]]]:
            node = self.nodes[name]
            avoided = sum(1 for _ in untolerated(pod["spec"], node, ("PreferNoSchedule",)))
            liking = preference(pod["spec"], node) + neighbours.preference(node) - 100 * avoided
            return -liking, self._siblings[family, name], self._totals[name], _natural(name)

        return Choice(min(fitting, key=rank))

    def others(self) -> Iterable[tuple[Object, str]]:
        """All pods with their nodes."""
        return self._pods.values()

    def repelling(self) -> Iterable[tuple[Object, str]]:
        """The pods that do not want some others near them, with their nodes."""
        return self._repelling.values()


class _Neighbours:
    """What a pod's affinity to other pods, and theirs to it, says of nodes; nothing is looked at that nobody asks for.

    Args:
        picture: the cluster.
        pod: the pod that looks for a node.
    """

    def __init__(self, picture: Picture, pod: Object) -> None:
        self._picture = picture
        self._pod = pod
        self._wanted = [(term, self._domains(term)) for term in _terms(pod, "podAffinity", _REQUIRED)]
        self._unwanted = [(term, self._domains(term)) for term in _terms(pod, "podAntiAffinity", _REQUIRED)]
        self._repelled = Counter(self._repelled_from())
        self._liked: Counter[tuple[str, str]] = Counter()
        for kind, sign in (("podAffinity", 1), ("podAntiAffinity", -1)):
            for item in _terms(pod, kind, _PREFERRED):
                term = item["podAffinityTerm"]
                for domain, count in self._domains(term).items():
                    self._liked[term["topologyKey"], domain] += sign * int(item["weight"]) * count

    def objection(self, node: Object) -> str:
        """Why the pod's neighbours keep it from the node; empty if they do not."""
        labels = node["metadata"].get("labels") or {}
        if any(labels.get(key) == domain for key, domain in self._repelled):
            return _OTHERS_ANTI_AFFINITY
        for term, domains in self._wanted:
            if not self._is_near(term, domains, labels):
                return _AFFINITY
        for term, domains in self._unwanted:
            if labels.get(term["topologyKey"]) in domains:
                return _ANTI_AFFINITY
        return ""

    def preference(self, node: Object) -> float:
        """How much the pod's preferred affinities speak for the node."""
        labels = node["metadata"].get("labels") or {}
        return sum(weight for (key, domain), weight in self._liked.items() if labels.get(key) == domain)

    def _is_near(self, term: Object, domains: Counter[str], labels: Mapping[str, str]) -> bool:
        domain = labels.get(term["topologyKey"])
        if domain is None:
            return False
        # The first of pods that want to be near each other goes anywhere (interpodaffinity, satisfyPodAffinity).
        return domain in domains or (not domains and self._is_meant(term, self._pod, self._pod))

    def _domains(self, term: Object) -> Counter[str]:
        """The values of the term's topology key where pods are that it means, with their numbers."""
        found: Counter[str] = Counter()
        for other, node in self._picture.others():
            if self._is_meant(term, other, self._pod) and (domain := self._domain(node, term)) is not None:
                found[domain] += 1
        return found

    def _repelled_from(self) -> Iterator[tuple[str, str]]:
        """The topologies in which a pod is that does not want this one near."""
        for other, node in self._picture.repelling():
            for term in _terms(other, "podAntiAffinity", _REQUIRED):
                domain = self._domain(node, term)
                if domain is not None and self._is_meant(term, self._pod, other):
                    yield term["topologyKey"], domain

    def _domain(self, node: str, term: Object) -> str | None:
        labels = (self._picture.nodes.get(node) or {"metadata": {}})["metadata"].get("labels") or {}
        found: str | None = labels.get(term["topologyKey"])
        return found

    def _is_meant(self, term: Object, other: Object, asking: Object) -> bool:
        """Whether a term of the pod ``asking`` means the pod ``other``."""
        namespace = other["metadata"]["namespace"]
        listed = term.get("namespaces") or []
        selector = term.get("namespaceSelector")
        if selector is None and not listed:
            is_there = namespace == asking["metadata"]["namespace"]
        else:
            labels = self._picture.namespaces.get(namespace) or {}
            is_there = namespace in listed or (selector is not None and matches(_selector(selector), labels))
        own = term.get("labelSelector")
        return is_there and own is not None and matches(_selector(own), other["metadata"].get("labels") or {})


def _count_down(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _terms(pod: Object, kind: str, strength: str) -> Sequence[Object]:
    affinity = (pod["spec"].get("affinity") or {}).get(kind) or {}
    found: Sequence[Object] = affinity.get(strength) or ()
    return found


def _selector(selector: Object) -> LabelSelector:
    return msgspec.convert(selector, LabelSelector)


def _family(pod: Object) -> str:
    """Whose pod it is: pods of one workload are spread before all others are looked at."""
    owner = controller_of(pod)
    return str(owner["uid"]) if owner is not None else ""


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which numbers in a name count as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
