"""Nodes in different proxy modes, random Services: every packet goes where the promise for its node's mode says.

The promises differ between the modes only where docs/differences.md and the promise's own source say so, so that what
is as promised in both is the same in both.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kproxy.api.types import Object
from kproxy.testing.labs import Lab, fresh_lab

pytestmark = pytest.mark.root

CLUSTER = """\
apiVersion: kproxy.dev/v1alpha1
kind: Cluster
spec:
  nodes:
    - {name: node1, zone: a, proxy: {mode: iptables}}
    - {name: node2, zone: a}
    - {name: node3, zone: b, proxy: {flags: {masquerade-all: "true"}}}
  proxy: {mode: nftables}
  externalRoutes:
    - {to: 198.51.101.0/25, via: node1}
    - {to: 198.51.101.128/25, via: node2}
"""
SERVICES = 6
SEED = 11


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    file = tmp_path_factory.mktemp("modes") / "cluster.yaml"
    file.write_text(CLUSTER)
    with fresh_lab("-f", str(file)) as made:
        yield made


def pods(rng: random.Random) -> list[Object]:
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod{number}", "labels": {"app": f"app{number % 2}"}},
            "spec": {
                "nodeName": rng.choice(["node1", "node2", "node3"]),
                "containers": [{"name": "main", "image": "any", "ports": [{"containerPort": 8080}]}],
            },
        }
        for number in range(3)
    ]


def service(rng: random.Random, number: int) -> Object:
    kind = rng.choice(["ClusterIP", "NodePort"])
    spec: Object = {
        "type": kind,
        "selector": {"app": f"app{rng.randrange(3)}"},  # nobody is app2
        "ports": [{"name": "web", "port": 80, "targetPort": 8080}],
        "externalIPs": rng.choice([[], [f"198.51.101.{1 + number}"], [f"198.51.101.{129 + number}"]]),
        "internalTrafficPolicy": rng.choice(["Cluster", "Cluster", "Local"]),
        "sessionAffinity": rng.choice(["None", "None", "ClientIP"]),
    }
    if kind == "NodePort" or spec["externalIPs"]:
        spec["externalTrafficPolicy"] = rng.choice(["Cluster", "Local"])
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"svc{number}"}, "spec": spec}


def test_random_services_are_served_as_promised_in_both_modes(lab: Lab) -> None:
    rng = random.Random(SEED)
    apply(lab, *pods(rng), *(service(rng, number) for number in range(SERVICES)))
    lab.settle()

    rows = json.loads(lab.run("verify", "-o", "json", expected=(0, 1)))

    wrong = [row for row in rows if not row["ok"]]
    assert not wrong, json.dumps(wrong[:3], indent=1)
    assert len(rows) > 60
    inside = [row for row in rows if row["kind"] == "ClusterIP" and row["client"].startswith("node/")]
    by_rules = {chain for row in inside if row["client"] == "node/node1" for chain in row["why"]}
    by_maps = {chain for row in inside if row["client"] != "node/node1" for chain in row["why"]}
    assert all(chain.startswith("KUBE-") for chain in by_rules)
    assert not any(chain.startswith("KUBE-") for chain in by_maps)
    assert by_rules | by_maps


def test_audit_of_a_node_in_mode_nftables_says_what_to_do_instead(lab: Lab) -> None:
    with pytest.raises(Exception, match="works in mode nftables") as refused:
        lab.run("audit", "node2")

    assert "nft list table ip kube-proxy" in str(refused.value)


def apply(lab: Lab, *objects: Object) -> None:
    lab.run("apply", "-f", "-", stdin=text(*objects))


def text(*objects: Any) -> str:
    return "\n---\n".join(json.dumps(obj) for obj in objects)


def test_rendered_commands_load_into_a_bare_namespace(lab: Lab, tmp_path: Path) -> None:
    """What `kproxy render` prints of the lab's objects, nft takes; twice, since it is what makes the table anew."""
    objects = [lab.run("get", kind, "-A", "-o", "yaml") for kind in ("services", "endpointslices", "nodes")]
    (tmp_path / "objects.yaml").write_text("\n---\n".join(objects))
    words = (
        "--manifests",
        str(tmp_path),
        "--node",
        "node2",
        "--proxy-mode",
        "nftables",
        "--cluster-cidr",
        "10.244.0.0/16",
    )
    script = tmp_path / "table.nft"
    script.write_text(lab.run("render", *words))

    listed = lab.run("exec", "client", "--", "sh", "-c", f"nft -f {script} && nft -f {script} && nft list ruleset")

    assert "vmap @service-ips" in listed
    lab.run("exec", "client", "--", "nft", "flush", "ruleset")
