"""What a pod's own command can see and do: nothing of the host, nothing of ours, nothing to the network."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from lab_support import apply, get, is_ready, pod, ready_pods, running, until

from kproxy.api.kinds import POD
from kproxy.client import Client
from kproxy.cluster import lab
from kproxy.cluster.layout import Layout
from kproxy.testing.labs import run_kproxy

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def up() -> Iterator[tuple[Layout, Client]]:
    with running(f"es{os.getpid() % 10000}", nodes=1) as both:
        yield both


def said(up: tuple[Layout, Client], name: str, script: str, **spec: object) -> str:
    """What a shell script says when it is a pod's command."""
    layout, client = up
    apply(
        client,
        pod(
            name,
            command=["sh", "-c", f"({script}) 2>&1; echo done"],
            restartPolicy="Never",
            **spec,
        ),
    )
    until(
        lambda: client.get(POD, name, "default")["status"].get("phase") == "Succeeded",
        f"{name} to end",
    )
    text = layout.log(f"default.{name}.main").read_text()
    assert text.endswith("done\n")
    return text.removesuffix("done\n")


def test_a_command_runs_and_is_heard(up: tuple[Layout, Client]) -> None:
    assert said(up, "control", "echo $HOSTNAME; hostname; id -u; cat /etc/hostname") == "control\ncontrol\n0\ncontrol\n"


def test_it_finds_no_secrets_of_the_host(up: tuple[Layout, Client]) -> None:
    text = said(
        up,
        "secrets",
        "ls /run/kproxy /var/lib/kproxy /root; cat /etc/shadow; ls -A /run /var /home",
    )
    lines = text.splitlines()
    assert len(lines) == 7
    for line in lines:
        assert line.endswith("No such file or directory") or line == "/var:" or not line, text


WRITES = [
    "touch /x",
    "touch /usr/x",
    "touch /etc/x",
    "touch /dev/x",
    "echo x > /etc/passwd",
    "echo 1 > /proc/sys/net/ipv4/ip_forward",
    "echo x >> /proc/self/fd/1",
    "mount -t tmpfs none /tmp",
    "mknod /tmp/null c 1 3",
    "chown 1 /tmp",
]


@pytest.mark.parametrize("attempt", WRITES)
def test_it_can_write_nothing_of_ours(up: tuple[Layout, Client], attempt: str) -> None:
    name = f"write-{WRITES.index(attempt)}"
    text = said(up, name, f"echo works > /tmp/ok && cat /tmp/ok; {attempt} && echo allowed")
    assert "works" in text
    assert "allowed" not in text


NETWORK = [
    "iptables-legacy -t nat -A OUTPUT -j ACCEPT",
    "iptables-nft -t nat -A OUTPUT -j ACCEPT",
    "nft add table ip mine",
    "ip link add type bridge",
    "ip addr add 10.9.9.9/32 dev lo",
    "ip route add 10.9.9.0/24 dev lo",
    "unshare --net true",
    "unshare --user --net true",
    f"nsenter --net=/proc/{os.getpid()}/ns/net true",
    "nsenter --net=/run/netns/LAB-node1 true",
    "nsenter --target 1 --net --user true",
    "/usr/bin/python3 -c 'import socket; socket.socket(socket.AF_PACKET, 3)'",
]


@pytest.mark.parametrize("is_on_node", [False, True], ids=["pod", "hostNetwork"])
@pytest.mark.parametrize("attempt", NETWORK)
def test_it_can_change_no_rule_and_no_namespace(up: tuple[Layout, Client], attempt: str, is_on_node: bool) -> None:
    layout, _ = up
    name = f"net-{NETWORK.index(attempt)}{'-node' if is_on_node else ''}"
    script = f"echo works; {attempt.replace('LAB', layout.lab)} && echo allowed"
    text = said(up, name, script, hostNetwork=is_on_node)
    assert text.startswith("works\n")
    assert "allowed" not in text
    assert "not found" not in text


def test_it_sees_its_own_processes_alone(up: tuple[Layout, Client]) -> None:
    text = said(up, "processes", "for pid in /proc/[0-9]*; do cat $pid/comm; done")
    assert set(text.split()) <= {"bwrap", "sh", "cat"}


def test_exec_is_as_confined(up: tuple[Layout, Client]) -> None:
    layout, client = up
    apply(client, pod("web-1"))
    ready_pods(client, 1)

    def executed(place: str, *argv: str) -> subprocess.CompletedProcess[str]:
        return run_kproxy(["exec", place, "--", *argv], lab=layout.lab)

    done = executed(
        "web-1",
        "sh",
        "-c",
        "hostname; ls /run/kproxy; ip link add type bridge; exit 3",
    )
    assert (done.returncode, done.stdout) == (3, "web-1\n")
    assert "No such file or directory" in done.stderr
    assert "Operation not permitted" in done.stderr
    # The control: on the node it is root, with the lab's iptables first.
    done = executed("node1", "iptables-save", "-t", "nat")
    assert ":KUBE-SERVICES" in done.stdout
    assert executed("node1", "sh", "-c", "echo $XTABLES_LOCKFILE").stdout == f"{layout.xtables_lock('node1')}\n"


def test_exec_is_beside_the_containers_own_processes(up: tuple[Layout, Client]) -> None:
    layout, client = up
    script = "echo mine >/tmp/note; exec sleep 1000"
    apply(client, pod("busy", command=["sh", "-c", script], restartPolicy="Never"))
    until(lambda: is_ready(client.get(POD, "busy", "default")), "ready")
    seen = "cat /tmp/note; cat /proc/[0-9]*/comm; echo $KUBERNETES_SERVICE_HOST; id -u; cat /etc/shadow"
    done = run_kproxy(["exec", "busy", "--", "sh", "-c", seen], lab=layout.lab)
    note, *processes, api, user = done.stdout.splitlines()
    assert (note, api, user) == ("mine", "10.96.0.1", "0")
    assert {"bwrap", "sleep"} <= set(processes) <= {"bwrap", "sleep", "sh", "cat"}
    assert "No such file or directory" in done.stderr
    # It is in the container's control groups, and has no right of the host's.
    status = run_kproxy(["exec", "busy", "--", "cat", "/proc/self/status"], lab=layout.lab).stdout
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    done = run_kproxy(["exec", "-c", "other", "busy", "--", "true"], lab=layout.lab)
    assert "container other is not valid for pod busy: it has main" in done.stderr


def test_a_pod_on_the_hosts_network_has_the_nodes_address_and_low_ports(
    up: tuple[Layout, Client],
) -> None:
    layout, client = up
    apply(client, pod("on-node", ports=(80,), hostNetwork=True))
    until(
        lambda: "on-node" in [entry.name for entry in lab.status(layout.lab).pods if entry.ready],
        "pod on node",
    )
    found = next(entry for entry in lab.status(layout.lab).pods if entry.name == "on-node")
    assert (found.namespace, found.host_network) == (layout.netns("node1"), True)
    assert client.get(POD, "on-node", "default")["status"]["podIP"] == "192.168.1.2"
    assert get(layout, "client", "192.168.1.2", 80, "/hostname") == "on-node\n"
    proxy = [entry.pid for entry in lab.status(layout.lab).processes if entry.role == "proxy"]
    client.delete(POD, "on-node", "default")
    until(
        lambda: "on-node" not in [entry.name for entry in lab.status(layout.lab).pods],
        "pod gone",
    )
    assert proxy == [entry.pid for entry in lab.status(layout.lab).processes if entry.role == "proxy"]
    with pytest.raises(ConnectionRefusedError):
        get(layout, "client", "192.168.1.2", 80)
