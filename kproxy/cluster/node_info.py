"""What a Node says about its machine (``status.nodeInfo``): every field that typed clients insist on."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from kproxy.api.kinds import KUBERNETES_VERSION
from kproxy.api.types import Object

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def architecture() -> str:
    """The machine's architecture in Go's words: ``amd64``, ``arm64``, ..."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


@functools.cache
def node_info() -> Object:
    """The same for all nodes of a lab, which share the host's kernel; its identity is nobody's business."""
    return {
        "architecture": architecture(),
        "bootID": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        "containerRuntimeVersion": "bubblewrap://",
        "kernelVersion": os.uname().release,
        "kubeProxyVersion": KUBERNETES_VERSION,
        "kubeletVersion": KUBERNETES_VERSION,
        "machineID": "",
        "operatingSystem": "linux",
        "osImage": _os_name(),
        "systemUUID": "",
    }


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"
