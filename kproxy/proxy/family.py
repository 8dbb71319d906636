"""The two address families, and how addresses of each are written."""

from __future__ import annotations

import ipaddress
import re
from enum import Enum
from functools import lru_cache

from kproxy.api.formats import without_leading_zeros


class Family(Enum):
    """An address family, by the name Kubernetes gives it in ipFamilies and addressType."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"

    @property
    def host_bits(self) -> int:
        """Prefix length that means one single address."""
        return 32 if self is Family.IPV4 else 128

    @property
    def everything(self) -> str:
        """The CIDR that holds every address."""
        return "0.0.0.0/0" if self is Family.IPV4 else "::/0"

    def has(self, address: str) -> bool:
        """Whether an address or CIDR is written in this family's form."""
        return (":" in address) == (self is Family.IPV6)

    def join(self, address: str, port: int) -> str:
        """``ip:port``, with an IPv6 address in brackets (Go's net.JoinHostPort)."""
        return f"[{address}]:{port}" if self is Family.IPV6 else f"{address}:{port}"


_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_is_canonical_ipv4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}").fullmatch


def canonical_address(text: str) -> str:
    """The one spelling of an address (``FD00::0:1`` -> ``fd00::1``); empty when the text is no address.

    Leading zeros are passed over, as kube-proxy does (``010.1.1.1`` -> ``10.1.1.1``).
    """
    # nearly all are; ipaddress takes ten times as long to find that out, and to remember them all takes memory
    return text if _is_canonical_ipv4(text) else _canonical_form(text)


@lru_cache(maxsize=65536)
def _canonical_form(text: str) -> str:
    try:
        return str(ipaddress.ip_address(without_leading_zeros(text.strip())))
    except ValueError:
        return ""


@lru_cache(maxsize=4096)
def canonical_cidr(text: str) -> str:
    """The one spelling of a CIDR, host bits cleared and blanks around it dropped; empty when the text is none."""
    address, slash, length = text.strip().partition("/")
    try:
        return str(ipaddress.ip_network(f"{without_leading_zeros(address)}{slash}{length}", strict=False))
    except ValueError:
        return ""


@lru_cache(maxsize=4096)
def contains(cidr: str, address: str) -> bool:
    """Whether ``address`` lies in ``cidr``; both canonical, False across families."""
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)


def split_host_port(endpoint: str) -> tuple[str, int]:
    """Address and port of ``ip:port`` or ``[ip]:port``."""
    address, _, port = endpoint.rpartition(":")
    return address.strip("[]"), int(port)
