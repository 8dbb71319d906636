"""Limits of containers, so that none takes the machine down: processes and memory, by control groups of the lab's own.

Law: where the host has no control groups that can be written, pods start without; `kproxy lab check` says so.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Final

from kproxy.api.quantities import rounded_up
from kproxy.api.types import Container
from kproxy.cluster.layout import Layout
from netns import cgroup
from netns.cgroup import Group, Hierarchies
from netns.errors import NetnsError
from netns.journal import Journal

PROCESSES: Final = 512
"""Processes and threads that a container may have (kubelet's --pod-max-pids; Kubernetes leaves it open)."""
MEMORY: Final = 512 * 1024 * 1024
"""Bytes that a container may have whose manifest sets no limit."""
_LEAST: Final = 4 * 1024 * 1024
"""Bytes below which not even the sandbox starts."""
_LOG = logging.getLogger(__name__)


def memory_of(containers: Iterable[Container]) -> int:
    """Bytes that these containers may have together: their limits, or what there is without one."""
    limits = [container.resources.limits.get("memory") for container in containers]
    return max(_LEAST, sum(MEMORY if limit is None else rounded_up(limit) for limit in limits))


def root_name(lab: str) -> str:
    """What the lab's own group is called."""
    return f"kproxy-{lab}"


class PodLimits:
    """The control groups of a lab's containers.

    Args:
        layout: the lab.
        journal: where its group is recorded before it is made.
    """

    def __init__(self, layout: Layout, journal: Journal) -> None:
        self._root = root_name(layout.lab)
        self._hierarchies: Hierarchies | None = None
        try:
            found = cgroup.find()
            cgroup.make_root(found, self._root, journal)
            self._hierarchies = found
        except (NetnsError, OSError) as error:
            _LOG.warning("pods have no limits: %s", error)

    def make(self, uid: str, container: str, memory: int) -> tuple[str, ...]:
        """The doors of a container's group (see `netns.cgroup.Group.doors`); none where there are no groups.

        Args:
            uid: the pod's.
            container: its name.
            memory: bytes.
        """
        group = self._group(uid, container)
        if group is None:
            return ()
        try:
            group.limit(PROCESSES, memory)
        except OSError as error:
            _LOG.warning("container %s of pod %s has no limits: %s", container, uid, error)
            return ()
        return group.doors

    def kills(self, uid: str, container: str) -> int:
        """How often the kernel has killed a process of the container because its memory was used up."""
        group = self._group(uid, container)
        return 0 if group is None else group.killed_for_memory()

    def remove(self, uid: str, container: str) -> bool:
        """Removes a container's group; false while a process that was killed is still there."""
        group = self._group(uid, container)
        with contextlib.suppress(OSError):
            return group is None or group.remove()
        return False

    def remove_others(self, uids: Collection[str], later: Callable[[str, str], None]) -> None:
        """Removes the groups of pods that are no longer wanted.

        Args:
            uids: those that are.
            later: told of each that cannot go yet, by uid and container.
        """
        for name in cgroup.members(self._hierarchies, self._root) if self._hierarchies is not None else ():
            uid, _, container = name.partition(".")
            if uid not in uids and not self.remove(uid, container):
                later(uid, container)

    def _group(self, uid: str, container: str) -> Group | None:
        return None if self._hierarchies is None else Group(self._hierarchies, f"{self._root}/{uid}.{container}")


def doors(lab: str, uid: str, container: str) -> tuple[str, ...]:
    """The doors of the group of a container that runs; none if it has no group.

    Args:
        lab: name of the lab.
        uid: the pod's.
        container: its name, or that of the echo server.
    """
    try:
        group = Group(cgroup.find(), f"{root_name(lab)}/{uid}.{container}")
    except (NetnsError, OSError):
        return ()
    return group.doors if all(folder.is_dir() for folder in group.folders) else ()
