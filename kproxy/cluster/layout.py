"""Where a lab keeps its things on the host, and which lab a command means.

Everything lies below `/run/kproxy/LAB` (gone after a reboot) and `/var/lib/kproxy/LAB` (survives it), both open to
root alone. Nothing else on the host's file system belongs to a lab but its entries in `/run/netns`.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kproxy.errors import UserError

RUN_ROOT = Path("/run/kproxy")
STATE_ROOT = Path("/var/lib/kproxy")
DEFAULT_LAB = "lab"
LAB_NAME = re.compile(r"[a-z0-9]{1,10}")


MAX_FILE_NAME = 200
"""Characters of a name of ours; a file system takes 255, and some of them belong to endings."""


def file_name(name: str) -> str:
    """The name itself, or if it is too long for a file, its beginning and a digest of the whole."""
    if len(name) <= MAX_FILE_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{name[: MAX_FILE_NAME - len(digest) - 1]}-{digest}"


@dataclass(frozen=True)
class Layout:
    """The paths of one lab.

    Args:
        lab: its name, 1 to 10 of `[a-z0-9]`.
    """

    lab: str

    @property
    def run(self) -> Path:
        """The folder of everything that lives as long as the lab is up."""
        return RUN_ROOT / self.lab

    @property
    def state(self) -> Path:
        """The folder of what survives a reboot."""
        return STATE_ROOT / self.lab

    @property
    def database(self) -> Path:
        """The store of all objects."""
        return self.state / "state.db"

    @property
    def cluster_file(self) -> Path:
        """The configuration that this lab was brought up with, as JSON."""
        return self.state / "cluster.json"

    @property
    def api_socket(self) -> Path:
        """The Kubernetes API, mode 0600."""
        return self.run / "api.sock"

    @property
    def api_url(self) -> str:
        """The API as `kproxy.client.Client` takes it."""
        return f"unix://{self.api_socket}"

    @property
    def certificates(self) -> Path:
        """The folder of the API's certificates and of the authority that they are from."""
        return self.state / "pki"

    @property
    def tokens(self) -> Path:
        """Who may ask the API by TLS, and with which token."""
        return self.state / "tokens.json"

    @property
    def api_port(self) -> Path:
        """The API's port on the host's 127.0.0.1; not there before it has listened once."""
        return self.state / "api-port"

    def kubeconfig(self, node: str) -> Path:
        """What a node's proxy goes by to reach the API."""
        return self.run / "kubeconfigs" / node

    @property
    def journal(self) -> Path:
        """The record of everything that was made; the last file that `lab down` removes."""
        return self.run / "journal"

    @property
    def load_balancers_file(self) -> Path:
        """Who serves which load balancer address now, as JSON; there once a Service has asked for one."""
        return self.run / "load-balancers.json"

    @property
    def haproxy_file(self) -> Path:
        """The configuration of the classic balancers' HAProxy."""
        return self.run / "haproxy.cfg"

    @property
    def haproxy_socket(self) -> Path:
        """Where one HAProxy takes the listeners over from the one before."""
        return self.run / "haproxy.sock"

    @property
    def lock(self) -> Path:
        """Held by the control plane, and by `lab up` and `lab down` while they work."""
        return self.run / "lock"

    @property
    def namespaces(self) -> Path:
        """Private bind mounts of the lab's network namespaces."""
        return self.run / "netns"

    @property
    def tools(self) -> Path:
        """Links to the iptables variant that the lab uses; first in PATH inside the lab."""
        return self.run / "bin"

    def pod(self, uid: str) -> Path:
        """The folder of one pod's records, by the uid of its object."""
        return self.run / "pods" / uid

    def xtables_lock(self, node: str) -> Path:
        """The lock that iptables tools take in this node instead of the host's."""
        return self.run / "locks" / f"{node}.lock"

    def log(self, name: str) -> Path:
        """The output of a process: `control-plane`, `proxy.NODE`, or `NAMESPACE.POD.CONTAINER`."""
        return self.run / "logs" / f"{file_name(name)}.log"

    def netns(self, name: str) -> str:
        """The published name of a node's, client's, router's or pod's network namespace."""
        return f"{self.lab}-{name}"

    def make(self) -> None:
        """Ensures that the folders exist, open to root alone."""
        for root in (RUN_ROOT, STATE_ROOT):
            root.mkdir(mode=0o755, exist_ok=True, parents=True)
        for folder in (self.run, self.state):
            folder.mkdir(mode=0o700, exist_ok=True)
        for name in ("netns", "locks", "logs", "bin", "pods", "kubeconfigs"):
            (self.run / name).mkdir(mode=0o700, exist_ok=True)


def labs() -> list[str]:
    """The labs that have left anything on this host, in order of their names."""
    found: set[str] = set()
    for root in (RUN_ROOT, STATE_ROOT):
        if root.is_dir():
            found |= {path.name for path in root.iterdir() if path.is_dir() and LAB_NAME.fullmatch(path.name)}
    return sorted(found)


def current_lab(name: str | None, environ: Mapping[str, str] = os.environ) -> Layout:
    """The lab that a command means: the named one, else `KPROXY_LAB`, else the only one there is.

    Args:
        name: what `--lab` said; None or empty when it was not given.
        environ: where `KPROXY_LAB` is looked up.

    Raises:
        UserError: there is no lab of that name, or none at all, or several to choose from.
    """
    existing = labs()
    wanted = name or environ.get("KPROXY_LAB") or ""
    if wanted:
        check_lab_name(wanted)
        if wanted not in existing:
            raise UserError(f'there is no lab "{wanted}"; labs that are up: {", ".join(existing) or "none"}')
        return Layout(wanted)
    if not existing:
        raise UserError("no lab is up; `kproxy lab up` makes one")
    if len(existing) > 1:
        raise UserError(f"several labs are up: {', '.join(existing)}; choose one with --lab NAME or KPROXY_LAB")
    return Layout(existing[0])


def check_lab_name(name: str) -> None:
    """Ensures that a lab may be called so.

    Raises:
        UserError: it may not.
    """
    if not LAB_NAME.fullmatch(name):
        raise UserError(f'"{name}" is no name for a lab: use 1 to 10 of the characters a-z and 0-9')


def python(*arguments: str) -> list[str]:
    """The command line that runs a module of this project with the interpreter that runs now.

    `-P` keeps the current folder, which may be anybody's, out of the import path.
    """
    return [sys.executable, "-P", "-m", *arguments]


def python_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of the lab's own processes: enough to import this project from where it is, and a fixed PATH."""
    source = str(Path(__file__).resolve().parents[2])
    kept = {key: value for key, value in environ.items() if key in ("KPROXY_CRASH_AT", "TZ")}
    return {
        **kept,
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": os.pathsep.join(filter(None, (source, environ.get("PYTHONPATH", "")))),
        "PYTHONUNBUFFERED": "1",
        "LANG": "C.UTF-8",
    }
