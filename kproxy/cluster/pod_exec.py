"""One more command in a pod, for `kproxy exec` and `kubectl exec`: in the very container, if that runs a command.

Law: the command sees what the container's processes see, and is as confined as they are. The echo server has no files,
so beside it a command gets a sandbox of its own, on the pod's network and with the pod's files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from kproxy.api.types import Container, Pod
from kproxy.cluster import pod_files, sandbox
from kproxy.cluster.clusterfile import ClusterConfig
from kproxy.cluster.layout import Layout
from kproxy.cluster.pod_limits import doors
from kproxy.cluster.pod_processes import recorded
from kproxy.cluster.pods import ECHO
from kproxy.errors import UserError
from netns.journal import Journal
from netns.namespace import named
from netns.process import Process


def exec_in(layout: Layout, netns: str, pod: Pod, container: Container, argv: Sequence[str]) -> NoReturn:
    """Becomes the program `argv` in a pod, with the terminal and standard streams of the calling process.

    Args:
        layout: the lab.
        netns: name of the pod's network namespace.
        pod: the pod.
        container: the one of its containers that is meant.
        argv: program and arguments.

    Raises:
        UserError: the container does not run.
        HostError: what makes sandboxes is not installed.
        NetnsError: there is no such namespace.
    """
    ns = named(netns, layout.namespaces)
    terminal = {"TERM": os.environ["TERM"]} if "TERM" in os.environ else {}
    config = msgspec.json.decode(layout.cluster_file.read_bytes(), type=ClusterConfig)
    if (layout.pod(pod.metadata.uid) / container.name).exists():
        main = _main_process(layout, pod, container)
        env = {**_environment(main), **terminal}
        groups = doors(layout.lab, pod.metadata.uid, container.name)
        inside = sandbox.Container(argv, "", env=env, working_dir=container.working_dir, groups=groups)
        sandbox.become_beside(inside, main, ns)
    addresses = [entry.ip for entry in pod.status.pod_ips]
    files = {"/etc/hosts": pod_files.hosts(pod, addresses), "/etc/resolv.conf": pod_files.resolv_conf(pod, config)}
    sandbox.become(
        sandbox.Container(
            argv,
            pod_files.hostname(pod),
            env=terminal,
            files=files,
            working_dir=container.working_dir,
            groups=doors(layout.lab, pod.metadata.uid, ECHO),
        ),
        ns,
    )


def _main_process(layout: Layout, pod: Pod, container: Container) -> Process:
    role = f"pod:{pod.metadata.uid}:{container.name}"
    journal = Journal(layout.journal, "exec")
    try:
        outer = recorded(journal, role).get(role, [])
    finally:
        journal.close()
    main = sandbox.main_process(outer[0]) if outer else None
    if main is None:
        raise UserError(f"container {container.name} of pod {pod.metadata.name} does not run")
    return main


def _environment(main: Process) -> Mapping[str, str]:
    """The variables that the container's command was started with."""
    text = Path(f"/proc/{main.pid}/environ").read_bytes().decode(errors="surrogateescape")
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if "=" in entry)
