"""Kubernetes' formats for names, labels, ports and addresses: each check gives the complaints in Kubernetes' words.

Kubernetes: apimachinery/pkg/util/validation. An empty list means that the value is well formed.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_PORT: Final = 65535
_MAX_LABEL: Final = 63
_MAX_SUBDOMAIN: Final = 253
_MAX_PORT_NAME: Final = 15

_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN: Final = rf"{_LABEL}(\.{_LABEL})*"
_QUALIFIED: Final = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE: Final = f"({_QUALIFIED})?"
_CONFIG_KEY = r"[-._a-zA-Z0-9]+"
_CONFIG_KEY_WORDS = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'"
_PERCENT: Final = "[0-9]+%"

_LABEL_WORDS: Final = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
    "and must start and end with an alphanumeric character"
)
_SUBDOMAIN_WORDS: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
    "and must start and end with an alphanumeric character"
)
_QUALIFIED_WORDS: Final = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
)
_LABEL_VALUE_WORDS: Final = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', "
    "and must start and end with an alphanumeric character"
)
_PERCENT_WORDS: Final = "a valid percent string must be a numeric string followed by an ending '%'"
_BAD_IP: Final = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
_LEADING_ZEROS: Final = "must not have leading 0s"
_MAPPED: Final = "must not be an IPv4-mapped IPv6 address"
_CIDR_LEADING_ZEROS: Final = "must not have leading 0s in IP or prefix length"
_CIDR_MAPPED: Final = "must not have an IPv4-mapped IPv6 address"
_HOST_BITS: Final = "must not have bits set beyond the prefix length"
_CANONICAL: Final = "must be in canonical form"
_BAD_CIDR: Final = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"


def dns_label(value: str) -> list[str]:
    """RFC 1123 label: names of Services, Namespaces, containers and ports of Services."""
    if _is_short_label(value):
        return []
    errors = _longer_than(value, _MAX_LABEL)
    if not re.fullmatch(_LABEL, value):
        has_dots = re.fullmatch(_SUBDOMAIN, value) is not None
        errors.append("must not contain dots" if has_dots else _regex(_LABEL_WORDS, _LABEL, "my-name", "123-abc"))
    return errors


def dns_subdomain(value: str) -> list[str]:
    """RFC 1123 subdomain: names of most other kinds."""
    if _is_short_label(value):
        return []
    errors = _longer_than(value, _MAX_SUBDOMAIN)
    if not re.fullmatch(_SUBDOMAIN, value):
        errors.append(_regex(_SUBDOMAIN_WORDS, _SUBDOMAIN, "example.com"))
    return errors


def full_domain(value: str) -> list[str]:
    """A domain name of two labels or more; one dot may stand at its end."""
    name = value.removesuffix(".")
    errors = [",".join(found)] if (found := dns_subdomain(name)) else []
    if not errors and "." not in name:
        errors.append("should be a domain with at least two segments separated by dots")
    return errors


def qualified_name(value: str) -> list[str]:
    """A label's key: a name with an optional DNS subdomain and a slash before it."""
    examples = ("MyName", "my.name", "123-abc")
    parts = value.split("/")
    if len(parts) > 2:
        words = _regex(f"a qualified name {_QUALIFIED_WORDS}", _QUALIFIED, *examples)
        return [f"{words} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"]
    errors = []
    if len(parts) == 2:
        errors += [f"prefix part {error}" for error in (dns_subdomain(parts[0]) if parts[0] else ["must be non-empty"])]
    name = parts[-1]
    if not name:
        errors.append("name part must be non-empty")
    errors += [f"name part {error}" for error in _longer_than(name, _MAX_LABEL)]
    if not re.fullmatch(_QUALIFIED, name):
        errors.append(f"name part {_regex(_QUALIFIED_WORDS, _QUALIFIED, *examples)}")
    return errors


def label_value(value: str) -> list[str]:
    """A label's value; may be empty."""
    errors = _longer_than(value, _MAX_LABEL)
    if not re.fullmatch(_LABEL_VALUE, value):
        errors.append(_regex(_LABEL_VALUE_WORDS, _LABEL_VALUE, "MyValue", "my_value", "12345"))
    return errors


def port_number(value: int) -> list[str]:
    """1 to 65535."""
    return [] if 1 <= value <= MAX_PORT else [f"must be between 1 and {MAX_PORT}, inclusive"]


def port_name(value: str) -> list[str]:
    """IANA service name (RFC 6335): what a container calls its port and targetPort names."""
    errors = _longer_than(value, _MAX_PORT_NAME)
    if not re.fullmatch("[-a-z0-9]+", value):
        errors.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search("[a-z]", value):
        errors.append("must contain at least one letter (a-z)")
    if "--" in value:
        errors.append("must not contain consecutive hyphens")
    if value.startswith("-") or value.endswith("-"):
        errors.append("must not begin or end with a hyphen")
    return errors


def percentage(value: str) -> list[str]:
    """``25%``."""
    return [] if re.fullmatch(_PERCENT, value) else [_regex(_PERCENT_WORDS, _PERCENT, "1%", "93%")]


def env_name(value: str) -> list[str]:
    """Name of an environment variable: printable ASCII without ``=`` (Kubernetes 1.34 relaxed it to this)."""
    if all(" " <= letter <= "~" and letter != "=" for letter in value):
        return []
    return ["a valid environment variable name must consist only of printable ASCII characters other than '='"]


def config_key(value: str) -> list[str]:
    """Complaints about a key of a ConfigMap (Kubernetes: validation.IsConfigMapKey)."""
    errors = _longer_than(value, 253)
    if not re.fullmatch(_CONFIG_KEY, value):
        errors.append(_regex(_CONFIG_KEY_WORDS, _CONFIG_KEY, "key.name", "KEY_NAME", "key-name"))
    if value in (".", ".."):
        errors.append(f"must not be '{value}'")
    elif value.startswith(".."):
        errors.append("must not start with '..'")
    return errors


def ip_address(value: str) -> list[str]:
    """An IPv4 or IPv6 address without leading zeros, zone or IPv4-mapped form (gate StrictIPCIDRValidation)."""
    address = parse_ip(value)
    if address is None:
        return [_LEADING_ZEROS] if parse_ip(without_leading_zeros(value)) is not None else [_BAD_IP]
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return [_MAPPED]
    return []


def ip_of_family(value: str, family: str) -> list[str]:
    """An address of that family, in canonical form; family is IPv4 or IPv6."""
    if family == "IPv4" and _PLAIN_IPV4.fullmatch(value):
        return []
    address = parse_ip(without_leading_zeros(value))
    if address is None or f"IPv{address.version}" != family:
        return [f"must be a valid {family} address"]
    complaints = ip_address(value)
    if not complaints and str(address) != value:
        complaints = [f'{_CANONICAL} ("{address}")']
    return complaints


def is_about_spelling(complaint: str) -> bool:
    """Whether an address or network is understood all the same; older Kubernetes took it, and may have stored it."""
    spellings = (_LEADING_ZEROS, _MAPPED, _CIDR_LEADING_ZEROS, _CIDR_MAPPED, _HOST_BITS)
    return complaint in spellings or complaint.startswith(_CANONICAL)


def ordinary_ip(value: str) -> list[str]:
    """An address that traffic can be sent to: not unspecified, loopback, link-local or link-local multicast.

    Args:
        value: an address that ``ip_address`` finds nothing wrong with; another one gives no complaint here.
    """
    if _PLAIN_IPV4.fullmatch(value):
        return []
    address = parse_ip(value)
    if address is None:
        return []
    errors = []
    if address.is_unspecified:
        errors.append(f"may not be unspecified ({value})")
    if address.is_loopback:
        errors.append("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    if address.is_link_local:
        errors.append("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    if address.is_multicast and any(address in network for network in _LINK_LOCAL_MULTICAST):
        errors.append("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
    return errors


_OCTET: Final = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
# Nearly every address is one of these and nothing is wrong with it; ipaddress takes ten times as long to find that out.
_PLAIN_IPV4: Final = re.compile(rf"(?!0\.|127\.|169\.254\.|224\.){_OCTET}(?:\.{_OCTET}){{3}}")
_LINK_LOCAL_MULTICAST: Final = (ipaddress.ip_network("224.0.0.0/24"), ipaddress.ip_network("ff02::/16"))


def cidr(value: str) -> list[str]:
    """A network in CIDR form: no leading zeros, no IPv4-mapped form, no bits beyond the prefix length."""
    address, slash, length = value.partition("/")
    plain = without_leading_zeros(address)
    is_length = slash == "/" and re.fullmatch("[0-9]{1,3}", length) is not None
    if not is_length or parse_ip(plain) is None or _network(f"{plain}/{int(length)}") is None:
        return [_BAD_CIDR]
    if plain != address or (len(length) > 1 and length.startswith("0")):
        return [_CIDR_LEADING_ZEROS]
    if _MAPPED in ip_address(address):
        return [_CIDR_MAPPED]
    return [] if parse_cidr(value) is not None else [_HOST_BITS]


@functools.lru_cache(maxsize=4096)  # the same text is asked about several times in a row, and python's parser is slow
def parse_ip(value: str) -> IPAddress | None:
    """The address, or None when the text is none; zones (``fe80::1%eth0``) are none."""
    if "%" in value:
        return None
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        return None


def parse_cidr(value: str) -> IPNetwork | None:
    """The network, or None when the text is none or has bits beyond its prefix length."""
    if "%" in value or "/" not in value:
        return None
    try:
        return ipaddress.ip_network(value)
    except ValueError:
        return None


def _network(text: str) -> IPNetwork | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def without_leading_zeros(value: str) -> str:
    """An IPv4 address as Kubernetes reads one with leading zeros: decimal (``010.1.1.1`` is ``10.1.1.1``)."""
    return re.sub(r"(?<![0-9a-fA-F:])0+(?=[0-9])", "", value) if re.fullmatch(r"[0-9.]+", value) else value


@functools.lru_cache(maxsize=4096)  # most names are this, and many come again and again: of nodes, ports, zones
def _is_short_label(value: str) -> bool:
    return len(value) <= _MAX_LABEL and re.fullmatch(_LABEL, value) is not None


def _longer_than(value: str, limit: int) -> list[str]:
    return [f"must be no more than {limit} bytes"] if len(value.encode("utf-8", "surrogatepass")) > limit else []


def _regex(words: str, pattern: str, *examples: str) -> str:
    shown = " or ".join(f"'{example}', " for example in examples)
    return f"{words} (e.g. {shown}regex used for validation is '{pattern}')"
