"""The node proxy as a process in a network namespace: its pages, --init-only, --cleanup, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from iptables_world import network_namespace, rules_of

pytestmark = pytest.mark.root

MANIFESTS = Path(__file__).parents[1] / "golden" / "rules" / "worked-example"
SECONDS = 20.0

NFT_TABLE = "add table ip kube-proxy; add chain ip kube-proxy services; add table ip other"


class Host:
    """A network namespace, and the node proxy's command line in it."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid = pid
        self.log = folder / "proxy.log"
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "XTABLES_LOCKFILE": str(folder / "lock"),
        }
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *argv: str, text: str = "", status: int = 0) -> str:
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-n", *argv],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
            env=self.environment,
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    def proxy(self, *flags: str) -> list[str]:
        given = [
            "--hostname-override=A",
            "--conntrack-max-per-core=0",
            "--oom-score-adj=0",
            "--cluster-cidr=10.244.0.0/16",
        ]
        return [sys.executable, "-m", "kproxy", "proxy", *given, *flags]

    @contextmanager
    def running(self, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
        """A proxy that has programmed its tables, and is gone at the end."""
        with self.log.open("ab") as log:
            argv = ["nsenter", "-t", str(self.pid), "-n", *self.proxy(*flags)]
            process = subprocess.Popen(argv, env=self.environment, stderr=log)
        try:
            until(lambda: self.is_programmed(), self.log)
            yield process
        finally:
            process.kill()
            process.wait()

    def is_programmed(self) -> bool:
        try:
            return bool(json.loads(self.get("10256/programmed"))["syncs"])
        except (AssertionError, ValueError):
            return False

    def get(self, place: str) -> str:
        return self.run("curl", "-sS", "--max-time", "5", f"http://127.0.0.1:{place}")

    def status(self, place: str) -> str:
        return self.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{place}")

    def saved(self, variant: str = "legacy", prefix: str = "iptables") -> str:
        return self.run(f"{prefix}-{variant}-save")


def until(check: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not check():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with network_namespace() as pid:
        yield Host(pid, tmp_path)


def source(variant: str = "legacy") -> tuple[str, ...]:
    return (f"--manifests={MANIFESTS}", f"--iptables-variant={variant}")


def test_pages_of_a_running_proxy(host: Host) -> None:
    with host.running(*source(), "--profiling", "-v=1"):
        assert host.get("10249/proxyMode") == "iptables"
        assert host.get("10249/healthz") == "ok"
        assert json.loads(host.get("10249/configz"))["kubeproxy.config.k8s.io"]["HostnameOverride"] == "A"
        assert host.status("10249/nowhere") == "404"
        assert 'kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 1' in host.get(
            "10249/metrics/slis"
        )
        assert "Paths: /configz /flagz /healthz" in host.get("10249/statusz")
        assert "hostname-override=A" in host.get("10249/flagz").splitlines()
        health = json.loads(host.get("10256/livez"))
        assert (health["healthy"], set(health["status"])) == (True, {"IPv4", "IPv6"})
        assert host.status("10256/livez") == "200"
        assert host.status("10256/healthz") == "503"  # the manifests hold no Node
        metrics = host.get("10249/metrics").splitlines()
        rules = sum(len(rules) for (_, chain), rules in rules_of(host.saved()).items() if chain.startswith("KUBE-"))
        counted = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in metrics if not line.startswith("#")
        }
        # the one rule of KUBE-FIREWALL is written too
        total = sum(
            counted[f'kubeproxy_sync_proxy_rules_iptables_total{{ip_family="IPv4",table="{table}"}}']
            for table in ("filter", "nat")
        )
        assert total == rules
        assert counted['kubeproxy_proxy_healthz_total{code="503"}'] == 1
        assert counted['kubeproxy_proxy_livez_total{code="200"}'] == 2
        assert counted['kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"}'] == 1
    log = host.log.read_text()
    assert log.count("flags without effect here: --profiling\n") == 1


@pytest.mark.parametrize("variant", ["legacy", "nft"])
def test_clean_up_takes_everything_of_ours_and_nothing_else(host: Host, variant: str) -> None:
    foreign = "*filter\n-A INPUT -p icmp -j ACCEPT\nCOMMIT\n*nat\n:MINE - [0:0]\n-A PREROUTING -j MINE\nCOMMIT\n"
    host.run(f"iptables-{variant}-restore", "--noflush", text=foreign)
    host.run("nft", NFT_TABLE)
    with host.running(*source(variant)):
        assert "KUBE-SVC-" in host.saved(variant)
        assert "kube-proxy" not in host.run("nft", "list", "tables")
    host.run("nft", NFT_TABLE)

    for _ in range(2):
        host.run(*host.proxy("--cleanup"))

    for prefix in ("iptables", "ip6tables"):
        left = {chain for _, chain in rules_of(host.saved(variant, prefix))}
        assert left == {"KUBE-FIREWALL", "INPUT", "OUTPUT"}  # kubelet's as well
        assert ":KUBE-PROXY-CANARY" not in host.saved(variant, prefix)
    assert "-A INPUT -p icmp -j ACCEPT" in host.saved(variant)
    assert "-A PREROUTING -j MINE" in host.saved(variant)
    tables = host.run("nft", "list", "tables")
    assert "table ip kube-proxy" not in tables
    assert "table ip other" in tables


def test_clean_up_of_one_variant_leaves_the_other(host: Host) -> None:
    for variant in ("legacy", "nft"):
        with host.running(*source(variant)):
            pass

    host.run(*host.proxy("--cleanup", "--iptables-variant=nft"))

    assert "KUBE-SVC-" in host.saved("legacy")
    assert "KUBE-SVC-" not in host.saved("nft")


def test_init_only_does_what_needs_privileges_and_writes_no_rule(host: Host) -> None:
    settings = {
        "net/ipv4/conf/all/route_localnet": "1",
        "net/netfilter/nf_conntrack_tcp_timeout_established": "86400",
        "net/netfilter/nf_conntrack_tcp_timeout_close_wait": "3600",
        "net/netfilter/nf_conntrack_udp_timeout": "77",
    }

    host.run(*host.proxy(*source(), "--init-only", "--conntrack-udp-timeout=77s"))

    found = {path: host.run("cat", f"/proc/sys/{path}").strip() for path in settings}
    assert found == settings
    assert "KUBE-" not in host.saved()


def test_init_only_leaves_localnet_alone_when_node_ports_are_not_there(host: Host) -> None:
    host.run(*host.proxy(*source(), "--init-only", "--iptables-localhost-nodeports=false"))

    assert host.run("cat", "/proc/sys/net/ipv4/conf/all/route_localnet").strip() == "0"


def test_bad_values_end_the_start_before_anything_is_touched(host: Host) -> None:
    words = host.run(*host.proxy(*source(), "--iptables-masquerade-bit=32", "--oom-score-adj=2000"), status=1)

    assert "KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: 32: must be within the range [0, 31]" in words
    assert "KubeProxyLinuxConfiguration.OOMScoreAdj: Invalid value: 2000" in words
    assert "KUBE-" not in host.saved()


def test_configuration_is_written_and_read_back(host: Host, tmp_path: Path) -> None:
    written = tmp_path / "config.yaml"
    host.run(*host.proxy("--iptables-sync-period=45s", f"--write-config-to={written}"))

    with host.running(f"--config={written}", *source(), "--hostname-override=B") as process:
        shown = json.loads(host.get("10249/configz"))["kubeproxy.config.k8s.io"]
        assert (shown["SyncPeriod"], shown["HostnameOverride"]) == ("45s", "B")
        written.write_text(written.read_text() + "\n")
        # never read again: it ends, so that whoever started it starts it anew
        assert process.wait(SECONDS) == 1
    assert "has changed" in host.log.read_text()


def test_rules_stay_when_the_proxy_ends(host: Host) -> None:
    with host.running(*source()) as process:
        before = host.saved()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0

    assert host.saved() == before
