"""What the subresources of a pod have in common: which of its containers is meant, and how to get into a pod."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol as Interface

from kproxy.api.types import Object
from kproxy.cluster import statuses


class PodAccess(Interface):
    """Where pods can be got at."""

    def log(self, namespace: str, name: str, container: str, *, is_previous: bool = False) -> Path:
        """The file that a container's output is appended to, or that of the run before; it may not be there yet."""

    def command(
        self, namespace: str, name: str, container: str, argv: Sequence[str], *, is_terminal: bool
    ) -> list[str]:
        """What to run on the host so that ``argv`` is run in a pod, with the streams that it is given.

        Args:
            namespace: the pod's.
            name: the pod's.
            container: the one that is meant.
            argv: program and arguments.
            is_terminal: whether its standard input is a terminal that is to be its controlling one.
        """


def container_named(pod: Object, name: str) -> str:
    """The container of that name; with no name, the only one.

    Raises:
        ApiError: there is none, or one of several has to be named.
    """
    spec, called = pod["spec"], pod["metadata"]["name"]
    names = [container["name"] for container in spec.get("containers") or ()]
    init_names = [container["name"] for container in spec.get("initContainers") or ()]
    if name in (*names, *init_names):
        return name
    if name:
        raise statuses.bad_request(f"container {name} is not valid for pod {called}")
    if len(names) > 1 or init_names:
        also = f" or one of the init containers: [{' '.join(init_names)}]" if init_names else ""
        choices = f"choose one of: [{' '.join(names)}]{also}"
        raise statuses.bad_request(f"a container name must be specified for pod {called}, {choices}")
    return str(names[0])


def status_of(pod: Object, container: str) -> Object:
    """What the pod's status says about one of its containers; nothing yet is an empty object."""
    status = pod.get("status") or {}
    told = (*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ()))
    return next((one for one in told if one.get("name") == container), {})
