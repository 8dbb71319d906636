"""What each role sets in its own namespace, in one table, because namespaces inherit whatever the host has set.

Law: only `net.*` keys, and only those the kernel keeps per namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from netns.errors import NetnsError
from netns.namespace import Namespace, run_in
from netns.topology import Role

_ROOT = Path("/proc/sys")

# Interfaces made later copy `default`, `lo` is there from the start, `all` is combined with each.
_SCOPES = ("all", "default", "lo")


def _per_interface(family: str, key: str, value: str) -> dict[str, str]:
    return {f"net.{family}.conf.{scope}.{key}": value for scope in _SCOPES}


# Addresses count at once, nobody reconfigures us from outside, replies may take another way than requests.
_EVERYWHERE: Mapping[str, str] = {
    **_per_interface("ipv4", "rp_filter", "0"),
    **_per_interface("ipv4", "send_redirects", "0"),
    **_per_interface("ipv4", "accept_redirects", "0"),
    **_per_interface("ipv6", "disable_ipv6", "0"),
    **_per_interface("ipv6", "accept_ra", "0"),
    **_per_interface("ipv6", "accept_redirects", "0"),
    **_per_interface("ipv6", "accept_dad", "0"),
    **_per_interface("ipv6", "dad_transmits", "0"),
    "net.ipv4.neigh.default.proxy_delay": "0",
    "net.ipv6.neigh.default.proxy_delay": "0",
    # "Refused" is an ICMP error: every refused packet gets its own, not one a second and client. The masks say which
    # types are limited, by the host-wide limit of older kernels too: none, and one that does not exist.
    "net.ipv4.icmp_ratelimit": "0",
    "net.ipv4.icmp_ratemask": "0",
    "net.ipv6.icmp.ratelimit": "0",
    "net.ipv6.icmp.ratemask": "0",
}

_FORWARDS: Mapping[str, str] = {
    "net.ipv4.ip_forward": "1",
    **_per_interface("ipv6", "forwarding", "1"),
}

_DOES_NOT_FORWARD: Mapping[str, str] = {
    "net.ipv4.ip_forward": "0",
    **_per_interface("ipv6", "forwarding", "0"),
}

SYSCTLS: Mapping[Role, Mapping[str, str]] = {
    Role.NODE: {**_EVERYWHERE, **_FORWARDS},
    Role.ROUTER: {**_EVERYWHERE, **_FORWARDS},
    Role.CLIENT: {**_EVERYWHERE, **_DOES_NOT_FORWARD},
    Role.POD: {
        **_EVERYWHERE,
        **_DOES_NOT_FORWARD,
        # As container runtimes do: port 80 and ping need no capability.
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
    },
    Role.FABRIC: {
        **_EVERYWHERE,
        **_DOES_NOT_FORWARD,
        # A switch: frames are none of netfilter's business. There only while br_netfilter is loaded.
        "net.bridge.bridge-nf-call-iptables": "0",
        "net.bridge.bridge-nf-call-ip6tables": "0",
        "net.bridge.bridge-nf-call-arptables": "0",
    },
}


def apply(namespace: Namespace, table: Mapping[str, str]) -> None:
    """Sets every key of `table` inside `namespace`; keys that this kernel does not have are passed over.

    Raises:
        NetnsError: there is no such namespace, or the kernel refused a value.
    """
    run_in(namespace, write, table)


def write(table: Mapping[str, str]) -> None:
    """Sets every key of `table` in the calling thread's namespace; keys that this kernel does not have are passed over.

    Raises:
        NetnsError: the kernel refused a value.
    """
    for key, value in table.items():
        path = _ROOT / key.replace(".", "/")
        try:
            with path.open("w", encoding="ascii") as file:
                file.write(value)
        except FileNotFoundError:
            continue  # an optional module
        except OSError as error:
            raise NetnsError(f"cannot set {key} to {value!r}: {error.strerror}", call=f"write {path}") from error
