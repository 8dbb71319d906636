"""Feeds mutated manifests to everything that reads them; `python tests/fuzz/fuzz_manifests.py --help`.

Only clean answers may come out: objects, or findings that name what is wrong. Input number i of a seed is always the
same, so that a failure is had again by ``--seed S --only i``.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from kproxy.api.known_fields import without_effect
from kproxy.api.manifest import duplicates, read
from kproxy.api.types import Object
from kproxy.api.validation import prepare
from kproxy.cluster.admission import ClusterSettings
from kproxy.cluster.registry import Registry
from kproxy.cluster.store import Store
from kproxy.errors import Invalid, KproxyError
from kproxy.proxy.backends.iptables.render import RuleSet
from kproxy.proxy.changes import Change, Tracker
from kproxy.proxy.config import ProxyConfig
from kproxy.proxy.family import Family
from kproxy.proxy.node import facts
from kproxy.proxy.setup import LOOPBACK, HostFeatures, circumstances, iptables_settings, node_port_scope
from kproxy.proxy.sources import TYPES, key_of, typed

SEEDS = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, labels: {team: a}, annotations: {service.kubernetes.io/topology-mode: Auto}}
spec:
  type: LoadBalancer
  selector: {app: web}
  clusterIP: 10.96.0.5
  clusterIPs: [10.96.0.5, "fd00:10:96::5"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  externalIPs: [203.0.113.9]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Cluster
  healthCheckNodePort: 30999
  loadBalancerSourceRanges: [203.0.113.0/24, "2001:db8::/32"]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 10}}
  trafficDistribution: PreferSameZone
  ports:
    - {name: a, port: 80, targetPort: http, nodePort: 30000, protocol: TCP, appProtocol: http}
    - {name: b, port: 53, targetPort: 5353, nodePort: 30001, protocol: UDP}
status: {loadBalancer: {ingress: [{ip: 198.51.100.1, ipMode: VIP}, {hostname: lb.example}]}}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, ports: [{port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: out}
spec: {type: ExternalName, externalName: a.example.}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
  - addresses: [10.244.1.2]
    conditions: {ready: true, serving: true, terminating: false}
    nodeName: node1
    zone: a
    hints: {forZones: [{name: a}], forNodes: [{name: node1}]}
    targetRef: {kind: Pod, name: web-x, namespace: default}
  - {addresses: [10.244.2.2], conditions: {ready: false, serving: true, terminating: true}, nodeName: node2}
ports: [{name: a, port: 8080, protocol: TCP}, {name: b, port: 5353, protocol: UDP}]
---
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.168.1.2}, {type: InternalIP, address: "fd00:1::2"}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: web}
subsets: [{addresses: [{ip: 10.244.1.2, nodeName: node1}], notReadyAddresses: [{ip: 10.244.1.3}], ports: [{port: 80}]}]
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: more}
spec: {cidrs: [10.112.0.0/16]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 1}}
  selector: {matchLabels: {app: web}, matchExpressions: [{key: app, operator: In, values: [web]}]}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
        - name: web
          image: web:1
          command: [sh, -c, "true"]
          ports: [{name: http, containerPort: 80}]
          env: [{name: A, value: b}]
          resources: {limits: {cpu: 500m, memory: 64Mi}}
          readinessProbe: {httpGet: {port: http, path: /}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec:
  type: NodePort
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7]
  selector: {app: web}
  sessionAffinity: ClientIP
  internalTrafficPolicy: Local
  externalTrafficPolicy: Cluster
  trafficDistribution: PreferSameNode
  ports: [{name: a, port: 80, targetPort: 8080, nodePort: 30010}, {name: b, port: 80, protocol: UDP, nodePort: 30010}]
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec:
  type: ClusterIP
  clusterIP: fd00:10:96::7
  clusterIPs: ["fd00:10:96::7"]
  ipFamilies: [IPv6]
  externalIPs: ["2001:db8::9"]
  externalTrafficPolicy: Local
  ports: [{port: 443}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
endpoints: [{addresses: ["fd00:10:244:1::2"], nodeName: node1}, {addresses: ["fd00:10:244:2::2"], conditions: {}}]
ports: [{name: a, port: 8080}, {name: "", port: 5353, protocol: UDP}]
---
apiVersion: kproxy.dev/v1alpha1
kind: Cluster
metadata: {name: lab}
spec: {ipFamilies: [IPv4, IPv6], nodes: [{name: node1, zone: a}], proxy: {flags: {v: 4}}, podNetwork: {mode: vxlan}}
"""

WORLD = {"Service": 0, "EndpointSlice": 3, "Node": 4}
"""Seeds that a mutated object of another of these kinds meets in the proxy."""

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 53, 80, 65535, 65536, 2**31, 2**63, 2**64, -(2**70), 0.5, 1e308, "", " ", "a", "None",
    "TCP", "udp", "Local", "Cluster", "IPv4", "IPv6", "SingleStack", "NodePort", "ClusterIP", "LoadBalancer",
    "ExternalName", "10.0.0.1", "010.0.0.1", "256.1.1.1", "::1", "::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.0/8",
    "10.0.0.1/33", "0.0.0.0/0", "::/0", "25%", "101%", "-1%", "500m", "1e99Gi", "../../etc/passwd", "a b", 'a"b', "a'b",
    "a\\", "a\nCOMMIT\n*nat", "$(id)", "--comment", "-j DROP", "\0", "\ud800", "\u202e", "\u00e9", "a" * 64, "a" * 300,
    [], {}, [None], [[]], {"": None}, {"a": {"a": {"a": {}}}}, ["10.0.0.1", "10.0.0.2", "10.0.0.3"], [{}],
]  # fmt: skip

SNIPPETS: list[bytes] = [
    *(bytes([number]) for number in (*range(32), 34, 39, 91, 93, 123, 125, 127, 133, 160, 254, 255)),
    b"- ", b": ", b"  ", b"&x ", b"*x", b"!!python/object/apply:os.system [id]", b"!t ", b"|\n", b">\n", b"---\n",
    b"...\n", b"<<: *x\n", b"? ", b"0x1f", b"1e9", b".inf", b".nan", b"~", b"yes", b"2026-01-01",
    b"\r\n", b"%YAML 1.1\n",
    b"kind: List\nitems:\n", b'{"kind":"List","items":[', b"null", b"\xe2\x80\xa8", b"\xef\xbb\xbf",
    b"\\ud800", b"1" * 5000,
]  # fmt: skip

CONFIG = ProxyConfig(manifests=".", cluster_cidr=("10.244.0.0/16", "fd00:10:244::/48"))
RULE_LINE = re.compile(r"[*#:].*|COMMIT|-A [A-Z0-9-]+ (?:[^\"\\]|\\.|\"(?:[^\"\\]|\\.)*\")*")
SLOW = 5.0  # seconds for one small input


class Fuzzer:
    """Mutates, feeds and judges; one for each process."""

    def __init__(self) -> None:
        self.seeds: list[Object] = list(yaml.safe_load_all(SEEDS))
        self.texts = [part.encode() for part in SEEDS.split("---\n")] + [SEEDS.encode()]
        self._world = {kind: prepare(self.seeds[at])[0] for kind, at in WORLD.items()}
        self._folder = tempfile.TemporaryDirectory(prefix="kproxy-fuzz-")
        self._store = store = Store(Path(self._folder.name) / "state.db")
        dual = ClusterSettings(service_cidrs=("10.96.0.0/12", "fd00:10:96::/112"), ip_families=("IPv4", "IPv6"))
        self._registry = Registry(store, dual)
        self._registry.bootstrap()

    def __enter__(self) -> Fuzzer:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()
        self._folder.cleanup()

    def input(self, chance: random.Random) -> tuple[bytes, str]:
        """A manifest and the name of its file."""
        name = chance.choice(("x.json", "x.json", "x.json", "x.yaml"))
        if chance.random() < 0.3:
            text = damaged(bytearray(chance.choice(self.texts)), chance)
            return bytes(text), "x.yaml" if chance.random() < 0.9 else "x.json"
        obj = self.mutated(chance.choice(self.seeds), chance)
        text = bytearray(json.dumps(obj, indent=chance.choice((None, 1))).encode())
        if chance.random() < 0.1:
            text = damaged(text, chance)
        return (b"# yaml\n" + bytes(text), "x.yaml") if name == "x.yaml" else (bytes(text), name)

    def mutated(self, obj: Any, chance: random.Random) -> Any:
        """An object that differs from another one in a few places."""
        obj = _copied(obj)
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            places = list(_places(obj))
            if not places:
                break
            owner, key = chance.choice(places)
            self._change(owner, key, chance)
        return obj

    def _change(self, owner: Any, key: Any, chance: random.Random) -> None:
        match chance.randrange(7):
            case 0 | 1:
                owner[key] = _copied(chance.choice(VALUES))
            case 2:
                del owner[key]
            case 3 | 4:
                places = list(_places(chance.choice(self.seeds)))
                alike = [place for place in places if place[1] == key]  # what stands there too is more often good
                other, there = chance.choice(alike or places)
                owner[key] = _copied(other[there])
            case 5 if isinstance(owner, list):
                owner[key:key] = [_copied(owner[key]) for _ in range(chance.choice((1, 2, 101)))]
            case 5:
                owner[chance.choice((f"{key}s", key[:-1], key.upper(), "", "status", "a.b/c"))] = _copied(owner[key])
            case _:
                owner[key] = _twisted(owner[key], chance)

    def first_inputs(self) -> list[bytes]:
        """Good manifests, as JSON and as YAML."""
        return [*(json.dumps(obj).encode() for obj in self.seeds), *self.texts]

    def next_after(self, text: bytes, longest: int, chance: random.Random) -> bytes:
        """An input like another one: objects change as objects, everything else as text.

        Args:
            text: the other one.
            longest: bytes that it may have.
            chance: decides.
        """
        if chance.random() < 0.8:
            with suppress(ValueError, RecursionError):
                return json.dumps(self.mutated(json.loads(text), chance)).encode()[:longest]
        return bytes(damaged(bytearray(text or b"{}"), chance)[:longest])

    def judge(self, text: bytes, file: str) -> str:
        """Feeds one input; "refused", "admitted" (to the API) or "unclean YAML or JSON".

        Raises:
            Exception: whatever is not a clean answer.
        """
        documents, findings = read(text, file)
        _demand(bool(documents or findings), "neither objects nor findings")
        usable, is_admitted = [], False
        for document in documents:
            _, errors = prepare(document.obj)
            findings += document.findings(errors)
            without_effect(document.obj)
            obj, refused = prepare(document.obj, is_strict=False)
            _demand(len(refused) <= len(errors), "the lenient look finds more")
            if not refused and obj.get("kind") in TYPES:
                usable.append(obj)
            is_admitted |= self._admit(document.obj)
        duplicates(documents)
        for found in findings:
            _demand(bool(str(found)) and "\n" not in str(found), f"a finding of several lines: {found!r}")
        for obj in usable[:3]:
            self._program(obj)
        return "admitted" if is_admitted else "refused" if documents else "no objects"

    def _admit(self, obj: Object) -> bool:
        try:
            self._registry.apply([{"object": obj}], dry_run=True)
        except Invalid as error:
            _demand(bool(error.status["details"]["causes"]), "a refusal without a cause")
            return False
        except KproxyError as error:
            _demand("range is full" in str(error) or "HealthCheck NodePort" in str(error), f"{type(error)}: {error}")
            return False
        return True

    def _program(self, obj: Object) -> None:
        """The rules of a small world in which the object takes the place of its kind's seed."""
        objects = [seed for kind, seed in self._world.items() if kind != obj["kind"]]
        values = [typed(one) for one in (*objects, obj)]
        node = facts(next((value for value in values if type(value).__name__ == "Node"), None))
        for family in Family:
            tracker = Tracker(family, "node1")
            tracker.take(Change(key_of(one), None, value) for one, value in zip((*objects, obj), values, strict=True))
            around = circumstances(CONFIG, "node1", node, family)
            rules = RuleSet(iptables_settings(CONFIG, node, family, HostFeatures()))
            scope = node_port_scope(CONFIG, node, family, (*node.addresses, LOOPBACK[family]))
            rules.take(tracker.delta(around, scope, is_full=True))
            for line in rules.saved().splitlines():
                _demand(RULE_LINE.fullmatch(line) is not None, f"not a rule: {line!r}")


def damaged(text: bytearray, chance: random.Random) -> bytearray:
    """A text with a few pieces taken out, put in or replaced."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, length = chance.randrange(len(text) + 1), chance.choice((0, 0, 1, 1, 3, 20, 200))
        piece = chance.choice(SNIPPETS) if chance.random() < 0.8 else bytes(text[at : at + 40])
        text[at : at + length] = piece
    return text


def file_of(text: bytes) -> str:
    """A name for an input's file that has it read as what it looks like."""
    return "x.json" if text[:1] in (b"{", b"[") else "x.yaml"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key (or index) below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _twisted(value: Any, chance: random.Random) -> Any:
    """A value near the one that is there."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + chance.choice((-1, 1, 65536, -value, -2 * value))
    if isinstance(value, str):
        at = chance.randrange(len(value) + 1)
        ways = (
            value[:at] + chance.choice('-._/:% A0\n"\\é') + value[at:],
            value[:at],
            value.upper(),
            value * 20,
            [value],
        )
        return chance.choice(ways)
    return [value, _copied(value)] if chance.random() < 0.5 else str(value)


def _demand(is_so: bool, words: str) -> None:
    if not is_so:
        raise AssertionError(words)


def run_one(fuzzer: Fuzzer, seed: int, number: int) -> tuple[str, float]:
    """Judges one input; what became of it and how long it took, in seconds.

    Raises:
        Exception: it is a finding of the fuzzer's.
    """
    text, file = fuzzer.input(random.Random(f"{seed}:{number}"))
    began = time.perf_counter()
    verdict = fuzzer.judge(text, file)
    return verdict, time.perf_counter() - began


def _share(job: tuple[int, int, int]) -> tuple[collections.Counter[str], float, list[str]]:
    """One process' share of the numbers: verdicts, the longest time, failures."""
    seed, first, end = job
    counts, longest, failures = collections.Counter[str](), 0.0, list[str]()
    with Fuzzer() as fuzzer:
        for number in range(first, end):
            try:
                verdict, seconds = run_one(fuzzer, seed, number)
            except Exception:  # noqa: BLE001 - whatever comes is what is looked for
                failures.append(f"--seed {seed} --only {number}\n{traceback.format_exc()}")
                verdict, seconds = "failed", 0.0
            counts[verdict] += 1
            longest = max(longest, seconds)
            if seconds > SLOW:
                failures.append(f"--seed {seed} --only {number}: {seconds:.1f} s")
    return counts, longest, failures


def main() -> int:
    """Runs as the command line says; 1 when something was not clean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None, help="default: another each time")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", type=int, default=None, help="show and judge this one input of the seed")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(10**9) if args.seed is None else args.seed
    if args.only is not None:
        with Fuzzer() as fuzzer:
            text, file = fuzzer.input(random.Random(f"{seed}:{args.only}"))
            print(f"# {file}\n{text!r}", flush=True)  # noqa: T201
            print(*run_one(fuzzer, seed, args.only))  # noqa: T201
        return 0
    print(f"seed {seed}: {args.inputs} inputs, {args.jobs} processes", flush=True)  # noqa: T201
    size = max(1, min(5_000, args.inputs // args.jobs))
    jobs = [(seed, first, min(first + size, args.inputs)) for first in range(0, args.inputs, size)]
    counts, longest, failures, began = collections.Counter[str](), 0.0, list[str](), time.monotonic()
    with multiprocessing.Pool(args.jobs) as pool:
        for share, seconds, failed in pool.imap_unordered(_share, jobs):
            counts += share
            longest = max(longest, seconds)
            failures += failed
            for failure in failed[:3]:
                print(failure, file=sys.stderr, flush=True)  # noqa: T201
    rate = counts.total() / (time.monotonic() - began)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    summary = f"{rate:.0f}/s, longest {longest:.2f} s, {len(failures)} failures"
    print(f"seed {seed}: {counts.total()} inputs: {verdicts}; {summary}")  # noqa: T201
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
