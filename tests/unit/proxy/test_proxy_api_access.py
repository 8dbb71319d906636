"""How the proxy finds the Kubernetes API, and what it shows there."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from scripted_api import Answer, Request, ScriptedApi, listing, refusal

from kproxy.api.kinds import SERVICE
from kproxy.client import Client
from kproxy.errors import ApiError, Unreachable, UserError
from kproxy.proxy import credentials
from kproxy.proxy.api_access import connect

Make = Callable[..., ScriptedApi]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Make]:
    running: list[ScriptedApi] = []

    def make(script: Callable[[Request], Answer] = lambda _: listing(), **options: Any) -> ScriptedApi:
        running.append(ScriptedApi(tmp_path / str(len(running)), script, **options))
        return running[-1]

    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    yield make
    for api in running:
        api.close()


def kubeconfig(
    folder: Path, api: ScriptedApi, user: dict[str, Any], *, name: str = "kubeconfig", **cluster: Any
) -> Path:
    """A kubeconfig for that API, as people write them."""
    path = folder / name
    entry = {"server": api.url, "certificate-authority": str(api.authority), **cluster}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {key: value for key, value in entry.items() if value is not None}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
        "preferences": {},
    }
    path.write_text(yaml.safe_dump(config))
    return path


def only(token: str) -> Callable[[Request], Answer]:
    """Lets only that token in."""
    return lambda asked: listing() if asked.authorization == f"Bearer {token}" else refusal(401, "Unauthorized")


def test_token_and_authority_from_files_and_from_data(tmp_path: Path, serve: Make) -> None:
    api = serve(only("sesame"))
    data = b64encode(api.authority.read_bytes()).decode()
    path = kubeconfig(tmp_path, api, {"token": "sesame"})
    connect(str(path), "").list(SERVICE)
    path = kubeconfig(
        tmp_path, api, {"token": "sesame"}, **{"certificate-authority": None, "certificate-authority-data": data}
    )
    connect(str(path), "").list(SERVICE)


def test_names_of_files_are_relative_to_the_kubeconfig(tmp_path: Path, serve: Make) -> None:
    api = serve(only("sesame"))
    (tmp_path / "ca").write_bytes(api.authority.read_bytes())
    (tmp_path / "t").write_text("sesame\n")
    connect(str(kubeconfig(tmp_path, api, {"tokenFile": "t"}, **{"certificate-authority": "ca"})), "").list(SERVICE)


def test_json_is_a_kubeconfig_too(tmp_path: Path, serve: Make) -> None:
    api = serve(only("sesame"))
    path = kubeconfig(tmp_path, api, {"token": "sesame"})
    path.write_text(json.dumps(yaml.safe_load(path.read_text())))
    connect(str(path), "").list(SERVICE)


def test_a_token_file_that_rotates_is_read_again_when_the_server_refuses(tmp_path: Path, serve: Make) -> None:
    api = serve(lambda asked: only((tmp_path / "right").read_text())(asked))
    (tmp_path / "t").write_text("old")
    (tmp_path / "right").write_text("old")
    client = connect(str(kubeconfig(tmp_path, api, {"tokenFile": str(tmp_path / "t")})), "")
    client.list(SERVICE)
    (tmp_path / "t").write_text("new")
    (tmp_path / "right").write_text("new")
    client.list(SERVICE)
    assert [asked.authorization for asked in api.requests] == ["Bearer old", "Bearer old", "Bearer new"]
    (tmp_path / "right").write_text("newest")
    with pytest.raises(ApiError, match="Unauthorized"):
        client.list(SERVICE)
    (tmp_path / "t").unlink()  # in the middle of a rotation
    with pytest.raises(ApiError, match="Unauthorized"):
        client.list(SERVICE)


def test_a_token_file_that_rotates_is_read_again_after_a_while(
    tmp_path: Path, serve: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "TOKEN_PERIOD", -1.0)
    api = serve()
    (tmp_path / "t").write_text("old")
    client = connect(str(kubeconfig(tmp_path, api, {"tokenFile": str(tmp_path / "t")})), "")
    client.list(SERVICE)
    (tmp_path / "t").write_text("new")
    client.list(SERVICE)
    assert [asked.authorization for asked in api.requests] == ["Bearer old", "Bearer new"]


def test_a_watch_goes_on_with_the_token_that_is_right_now(tmp_path: Path, serve: Make) -> None:
    (tmp_path / "right").write_text("old")
    (tmp_path / "t").write_text("old")

    def script(asked: Request) -> Answer:
        if "watch" in asked.query and asked.authorization == "Bearer old":
            (tmp_path / "right").write_text("new")
            (tmp_path / "t").write_text("new")
        if asked.authorization != f"Bearer {(tmp_path / 'right').read_text()}":
            return refusal(401, "Unauthorized")
        bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
        return Answer(lines=(bookmark,)) if "watch" in asked.query else listing()

    client = connect(str(kubeconfig(tmp_path, serve(script), {"tokenFile": "t"})), "")
    told = client.follow_raw(SERVICE)
    assert [next(told).resource_version for _ in range(2)] == ["7", "9"]
    client.close()


def make_client_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    (folder / "crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "crt", folder / "key"


def test_client_certificates_from_files_and_from_data(tmp_path: Path, serve: Make) -> None:
    certificate, key = make_client_certificate(tmp_path / "mine", "node-7")
    api = serve(client_authority=certificate)
    files = {"client-certificate": "mine/crt", "client-key": "mine/key"}
    data = {
        "client-certificate-data": b64encode(certificate.read_bytes()).decode(),
        "client-key-data": b64encode(key.read_bytes()).decode(),
    }
    for user in (files, data):
        connect(str(kubeconfig(tmp_path, api, user)), "").list(SERVICE)
    assert [asked.certificate for asked in api.requests] == ["node-7", "node-7"]
    with pytest.raises(Unreachable):
        connect(str(kubeconfig(tmp_path, api, {})), "").list(SERVICE)


def test_client_certificates_that_rotate_are_read_again(tmp_path: Path, serve: Make) -> None:
    certificate, _ = make_client_certificate(tmp_path / "mine", "node-7")
    both = tmp_path / "authorities"
    other, other_key = make_client_certificate(tmp_path / "next", "node-8")
    both.write_bytes(certificate.read_bytes() + other.read_bytes())
    api = serve(client_authority=both)
    client = connect(str(kubeconfig(tmp_path, api, {"client-certificate": "mine/crt", "client-key": "mine/key"})), "")
    client.list(SERVICE)
    other.replace(tmp_path / "mine" / "crt")
    client.close()
    client.list(SERVICE)  # a certificate without its key: the ones of before stay in use
    other_key.replace(tmp_path / "mine" / "key")
    client.close()
    client.list(SERVICE)
    assert [asked.certificate for asked in api.requests] == ["node-7", "node-7", "node-8"]


def test_whom_to_trust(tmp_path: Path, serve: Make) -> None:
    api, other = serve(), serve()
    strange = {"certificate-authority": str(other.authority)}
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        connect(str(kubeconfig(tmp_path, api, {}, **strange)), "").list(SERVICE)
    unknown_name = {"server": api.url.replace("127.0.0.1", "localhost")}
    with pytest.raises(Unreachable, match="Hostname mismatch"):
        connect(str(kubeconfig(tmp_path, api, {}, **unknown_name)), "").list(SERVICE)
    connect(str(kubeconfig(tmp_path, api, {}, **unknown_name, **{"tls-server-name": "kubernetes"})), "").list(SERVICE)
    careless = {"certificate-authority": None, "insecure-skip-tls-verify": True}
    connect(str(kubeconfig(tmp_path, api, {}, **careless)), "").list(SERVICE)


PLUGIN = """\
import json, os, pathlib, sys
calls = pathlib.Path(sys.argv[1])
calls.write_text(calls.read_text() + "x")
assert json.loads(os.environ["KUBERNETES_EXEC_INFO"])["kind"] == "ExecCredential"
status = {"token": os.environ["WHAT"] + str(len(calls.read_text()))}
json.dump({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}, sys.stdout)
"""


def plugin(folder: Path) -> dict[str, Any]:
    """A user entry whose plugin gives the token ``sesame1``, then ``sesame2``, and so on."""
    (folder / "plugin.py").write_text(PLUGIN)
    (folder / "calls").write_text("")
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": [str(folder / "plugin.py"), str(folder / "calls")],
            "env": [{"name": "WHAT", "value": "sesame"}],
            "interactiveMode": "Never",
        }
    }


def test_an_exec_plugin_is_asked_once_and_again_when_the_server_refuses(
    tmp_path: Path, serve: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = serve(lambda asked: only((tmp_path / "right").read_text())(asked))
    (tmp_path / "right").write_text("sesame1")
    client = connect(str(kubeconfig(tmp_path, api, plugin(tmp_path))), "")
    client.list(SERVICE)
    client.list(SERVICE)
    assert (tmp_path / "calls").read_text() == "x"
    (tmp_path / "right").write_text("sesame2")
    with pytest.raises(ApiError, match="Unauthorized"):  # not at once: a server that refuses all would have it run on
        client.list(SERVICE)
    monkeypatch.setattr(credentials, "PLUGIN_PAUSE", 0.0)
    client.list(SERVICE)
    assert (tmp_path / "calls").read_text() == "xx"


def test_a_plugin_that_fails_is_named(tmp_path: Path, serve: Make) -> None:
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}}
    with pytest.raises(UserError, match="neither a token nor a certificate"):
        connect(str(kubeconfig(tmp_path, serve(), user)), "")


def test_a_password_is_the_librarys(tmp_path: Path, serve: Make) -> None:
    api = serve()
    connect(str(kubeconfig(tmp_path, api, {"username": "me", "password": "secret"})), "").list(SERVICE)
    assert api.requests[0].authorization == "Basic " + b64encode(b"me:secret").decode()


def test_the_official_library_is_loaded_for_plugins_alone(tmp_path: Path, serve: Make) -> None:
    """It costs 170 ms and 36 MB."""
    path = kubeconfig(tmp_path, serve(), {"token": "sesame"})
    path.write_text(json.dumps(yaml.safe_load(path.read_text())))
    code = (
        "import sys; from kproxy.proxy.api_access import connect; from kproxy.api.kinds import SERVICE\n"
        f"connect({str(path)!r}, '').list(SERVICE)\n"
        "print(sorted({'kubernetes', 'yaml', 'aiohttp', 'cryptography'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"


def test_in_a_pod_the_clusters_own_api(tmp_path: Path, serve: Make) -> None:
    api = serve(only("pods"))
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("pods")
    (account / "ca.crt").write_bytes(api.authority.read_bytes())
    port = api.url.rpartition(":")[2]
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}
    connect("", "", environ, account).list(SERVICE)
    assert (
        connect("", "", {**environ, "KUBERNETES_SERVICE_HOST": "fd00::1"}, account).url == f"https://[fd00::1]:{port}"
    )
    (account / "token").unlink()
    with pytest.raises(UserError, match=r"token file .*No such file"):
        connect("", "", environ, account)
    with pytest.raises(UserError, match="where are the objects"):
        connect("", "", {}, account)


def test_master_stands_above_the_kubeconfigs_server(tmp_path: Path, serve: Make) -> None:
    api = serve(only("sesame"))
    path = kubeconfig(tmp_path, api, {"token": "sesame"}, server="https://192.0.2.1:1")
    connect(str(path), api.url).list(SERVICE)
    assert connect("", "http://192.0.2.1:8080").url == "http://192.0.2.1:8080"


def test_a_path_before_kubernetes_own(tmp_path: Path, serve: Make) -> None:
    api = serve()
    connect(str(kubeconfig(tmp_path, api, {}, server=f"{api.url}/k8s/clusters/c-1/")), "").list(SERVICE)
    assert api.requests[0].path == "/k8s/clusters/c-1/api/v1/services"


def test_by_way_of_a_proxy(tmp_path: Path, serve: Make) -> None:
    api = serve()
    asked: list[bytes] = []

    def relay(listener: socket.socket) -> None:
        inside, _ = listener.accept()
        with inside, socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2]))) as outside:
            asked.append(inside.recv(4096).partition(b"\r\n")[0])
            inside.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=pump, args=(outside, inside), daemon=True)
            back.start()
            pump(inside, outside)
            back.join()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=relay, args=(listener,), daemon=True)
        thread.start()
        by_way_of = {"proxy-url": f"http://127.0.0.1:{listener.getsockname()[1]}"}
        client = connect(str(kubeconfig(tmp_path, api, {}, **by_way_of)), "")
        client.list(SERVICE)
        client.close()
        thread.join(30)
    assert [line.rpartition(b" ")[0] for line in asked] == [f"CONNECT {api.url.removeprefix('https://')}".encode()]


BAD: list[tuple[str, str]] = [
    ("", "has no current-context"),
    ("a: [", "is no kubeconfig"),
    ("{", "is no kubeconfig"),
    ("[1]", "is no kubeconfig"),
    ("current-context: x", 'context "x" does not exist'),
    ("{current-context: x, contexts: [{name: x, context: {}}]}", "names no cluster"),
    ("{current-context: x, contexts: [{name: x, context: {cluster: c}}]}", 'cluster "c" does not exist'),
    (
        "{current-context: x, contexts: [{name: x, context: {cluster: c, user: u}}], "
        "clusters: [{name: c, cluster: {}}]}",
        'user "u" does not exist',
    ),
    ("clusters: 1", "is no kubeconfig"),
]
BAD_CLUSTERS: list[tuple[dict[str, Any], str]] = [
    ({"server": "ftp://x"}, "no address of a Kubernetes API"),
    ({"server": ""}, "no address of a Kubernetes API"),
    ({"certificate-authority": "absent"}, "a certificate or key cannot be used: .*No such file"),
    ({"certificate-authority": None, "certificate-authority-data": "!"}, "a certificate or key cannot be used"),
    ({"certificate-authority": None, "certificate-authority-data": "aGFsbG8="}, "a certificate or key cannot be used"),
    ({"proxy-url": "socks5://x:1"}, "only http:// proxies"),
]
BAD_USERS: list[tuple[dict[str, Any], str]] = [
    ({"tokenFile": "absent"}, 'user "u": token file .*No such file'),
    ({"tokenFile": "empty"}, 'user "u": token file .*is empty'),
    ({"client-certificate": "absent", "client-key": "absent"}, "No such file"),
    ({"client-certificate-data": "aGFsbG8=", "client-key-data": "aGFsbG8="}, "a certificate or key cannot be used"),
    ({"token": 5}, 'user "u": Expected `str`'),
    ({"as": "somebody"}, "does not impersonate"),
]


@pytest.mark.parametrize(("text", "words"), BAD)
def test_a_file_that_is_no_kubeconfig_says_why(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    with pytest.raises(UserError, match=words):
        connect(str(tmp_path / "kubeconfig"), "")


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: No such file"):
        connect(str(tmp_path / "absent"), "")


@pytest.mark.parametrize(("cluster", "words"), BAD_CLUSTERS)
def test_a_cluster_that_cannot_be_used_says_why(
    tmp_path: Path, serve: Make, cluster: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        connect(str(kubeconfig(tmp_path, serve(), {}, **cluster)), "")


@pytest.mark.parametrize(("user", "words"), BAD_USERS)
def test_a_user_that_cannot_be_used_says_why(tmp_path: Path, serve: Make, user: dict[str, Any], words: str) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UserError, match=words):
        connect(str(kubeconfig(tmp_path, serve(), user)), "")


def test_keys_never_come_to_a_disk(tmp_path: Path, serve: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = make_client_certificate(tmp_path / "mine", "node-7")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    user = {
        "client-certificate-data": b64encode(certificate.read_bytes()).decode(),
        "client-key-data": b64encode(key.read_bytes()).decode(),
    }
    client = connect(str(kubeconfig(tmp_path, serve(), user)), "")
    assert isinstance(client, Client)
    assert list((tmp_path / "temporary").iterdir()) == []
