"""`lab up --expose`: node ports at an address of the host, by a relay; the host is a network namespace here."""

from __future__ import annotations

import json
import subprocess

import pytest
from test_lab_check import KPROXY, ROOT, on_host

pytestmark = pytest.mark.root

ADDRESS = "198.18.7.1"
PREPARE = f"ip link set lo up; ip address add {ADDRESS}/32 dev lo\n"
ASK = "curl -s --max-time 5 --retry 20 --retry-delay 0 --retry-connrefused --retry-all-errors"
NODEPORT = f"{KPROXY} apply -f {ROOT}/manifests/nodeport --wait=20 >/dev/null\n"
LOCAL = """python3 - <<'END'
import json
print(json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kept"}, "spec": {
    "type": "NodePort", "externalTrafficPolicy": "Local", "selector": {"app": "front"},
    "ports": [{"port": 80, "nodePort": 31001}]}}))
END
"""
# Asks until there is no answer. A reset may arrive while connect() still runs, so curl's status says too little.
WHAT_COMES_OF_IT = """python3 -c '
import socket, sys, time
for _ in range(50):
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as client:
            client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            what = "answered" if client.recv(1) else "closed"
    except ConnectionError as error:
        what = {ConnectionResetError: "reset", BrokenPipeError: "reset", ConnectionRefusedError: "refused"}[type(error)]
    if what != "answered":
        break
    time.sleep(0.1)
print(what)' """


def outcome(script: str) -> subprocess.CompletedProcess[str]:
    done = on_host(PREPARE, script)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_node_port_answers_at_the_address_and_the_client_seen_is_the_routers_or_the_nodes() -> None:
    done = outcome(f"""
        {KPROXY} lab up --expose {ADDRESS} >&2
        {NODEPORT}
        ({LOCAL}) | {KPROXY} apply -f - --wait=20 >/dev/null
        {ASK} -H 'Accept: application/json' http://{ADDRESS}:31000/
        {ASK} -H 'Accept: application/json' http://{ADDRESS}:31001/
    """)
    decoder = json.JSONDecoder()
    cluster, end = decoder.raw_decode(done.stdout)
    local, _ = decoder.raw_decode(done.stdout[end:].lstrip())
    assert cluster["client"] in ("192.168.1.2", "10.244.1.1")
    assert local["client"] == "192.168.1.1"
    assert f"its TCP node ports are now reachable at {ADDRESS}" in done.stderr


def test_without_the_option_nothing_listens() -> None:
    done = on_host(PREPARE, f"{KPROXY} lab up; {NODEPORT} ss -Hlnt; ! curl -s --max-time 2 http://{ADDRESS}:31000/")
    assert done.returncode == 0, done.stderr
    _, *listening = done.stdout.splitlines()
    assert [line.split()[3].rpartition(":")[0] for line in listening] == ["127.0.0.1"], "kubectl's door, and no other"


def test_ports_come_and_go_with_services() -> None:
    done = outcome(f"""
        {KPROXY} lab up --expose {ADDRESS} >/dev/null
        {NODEPORT} {ASK} http://{ADDRESS}:31000/hostname
        {KPROXY} delete service front >/dev/null
        for _ in $(seq 50); do ss -Hlnt | grep -q :31000 || exit 0; sleep 0.1; done
        exit 1
    """)
    assert done.stdout.startswith("front-")


def test_a_port_without_endpoints_is_reset() -> None:
    done = outcome(f"""
        {KPROXY} lab up --expose {ADDRESS} >/dev/null
        {NODEPORT} {ASK} -o /dev/null http://{ADDRESS}:31000/hostname
        {KPROXY} delete deployment front >/dev/null
        {WHAT_COMES_OF_IT} {ADDRESS} 31000
    """)
    assert done.stdout == "reset\n"


def test_much_data_and_half_closed_connections_get_through() -> None:
    job = '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"sink","labels":{"app":"sink"}},"spec":{"containers":[{"name":"main","image":"any","command":["python3","-c","import socket,hashlib\\ns=socket.create_server((\\"\\",9000))\\nwhile 1:\\n c,_=s.accept(); h=hashlib.sha256()\\n while d:=c.recv(65536): h.update(d)\\n c.sendall(h.hexdigest().encode()); c.close()"]}]}}'  # noqa: E501 - one object a line
    service = '{"apiVersion":"v1","kind":"Service","metadata":{"name":"sink"},"spec":{"type":"NodePort","selector":{"app":"sink"},"ports":[{"port":9000,"nodePort":31002}]}}'  # noqa: E501
    client = (
        "import socket,hashlib,os,sys,time\n"
        "data=os.urandom(8<<20)\n"
        "for _ in range(100):\n"
        "  try: s=socket.create_connection((sys.argv[1],31002),5); s.sendall(data); s.shutdown(1); got=s.recv(100)\n"
        "  except OSError: got=b''\n"
        "  if got: break\n"
        "  time.sleep(0.1)\n"
        "assert got.decode()==hashlib.sha256(data).hexdigest(), got\n"
    )
    outcome(f"""
        {KPROXY} lab up --expose {ADDRESS} >/dev/null
        printf '%s\\n---\\n%s\\n' '{job}' '{service}' >/run/objects.yaml
        {KPROXY} apply -f /run/objects.yaml --wait=20 >/dev/null
        cat >/run/client.py <<'END'
{client}
END
        python3 /run/client.py {ADDRESS}
    """)


def test_the_relay_is_on_record_and_goes_with_the_lab() -> None:
    done = outcome(f"""
        {KPROXY} lab up --expose {ADDRESS} >/dev/null
        {KPROXY} lab up --expose {ADDRESS}
        {KPROXY} lab status | grep relay
        grep -ls '[k]proxy.cluster.relay' /proc/[0-9]*/cmdline
        {KPROXY} lab down
        ! grep -ls '[k]proxy.cluster.relay' /proc/[0-9]*/cmdline
    """)
    assert f"its TCP node ports are already reachable at {ADDRESS}" in done.stdout
    assert f"host, {ADDRESS}" in done.stdout


@pytest.mark.parametrize("address", ["192.0.2.77", "nonsense", "2001:db8::77"])
def test_an_address_that_is_not_the_hosts_is_refused(address: str) -> None:
    done = on_host(PREPARE, f"{KPROXY} lab up --expose {address} || {{ ls /run/kproxy || exit 1; }}")
    assert done.returncode == 1
    assert "cannot access '/run/kproxy'" in done.stderr
    assert f'"{address}" is no address of this host' in done.stderr
