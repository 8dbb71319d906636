"""The proxy's command line, in kube-proxy's syntax (github.com/spf13/pflag) and with its refusals.

Flags are written ``--flag=value`` or ``--flag value``, switches ``--switch`` or ``--switch=false``; ``_`` in a name is
``-``. Flags of kube-proxy that mean nothing here are accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from kproxy.errors import UserError
from kproxy.proxy.config import HEALTHZ_PORT, METRICS_PORT, WITHOUT_EFFECT, ProxyConfig, duration, with_port
from kproxy.proxy.config_validation import validate
from kproxy.proxy.family import canonical_address

_GO_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_GO_FALSE = ("0", "f", "F", "false", "FALSE", "False")
_INT32 = range(-(1 << 31), 1 << 31)


class Flag(NamedTuple):
    """How a flag's text becomes a value.

    Attributes:
        field: the field of ProxyConfig that it sets; empty when there is none.
        parse: text to value; raises ValueError in Go's words.
        is_switch: may stand alone, and then means true.
    """

    field: str
    parse: Callable[[str], Any]
    is_switch: bool = False


def _text(value: str) -> str:
    return value


def _integer(value: str) -> int:
    try:
        number = int(value, 0)
    except ValueError as error:
        raise ValueError(f"strconv.ParseInt: parsing {json.dumps(value)}: invalid syntax") from error
    if number not in _INT32:
        raise ValueError(f"strconv.ParseInt: parsing {json.dumps(value)}: value out of range")
    return number


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(f"strconv.ParseFloat: parsing {json.dumps(value)}: invalid syntax") from error


def _duration(value: str) -> float:
    """A duration that may be negative: it is for the validation to refuse it."""
    return -duration(value[1:]) if value.startswith("-") else duration(value)


def _boolean(value: str) -> bool:
    if value not in _GO_TRUE + _GO_FALSE:
        raise ValueError(f"strconv.ParseBool: parsing {json.dumps(value)}: invalid syntax")
    return value in _GO_TRUE


def _list(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _gates(value: str) -> tuple[str, ...]:
    for part in _list(value):
        name, equals, setting = part.partition("=")
        if not equals:
            raise ValueError(f"missing bool value for {name}")
        if setting.strip() not in _GO_TRUE + _GO_FALSE:
            why = f"strconv.ParseBool: parsing {json.dumps(setting)}: invalid syntax"
            raise ValueError(f"invalid value of {name}: {setting}, err: {why}")
    return _list(value)


def _address(value: str) -> str:
    if value and not canonical_address(value):
        raise ValueError(f"{json.dumps(value)} is not a valid IP address")
    return value


def _address_port(value: str) -> str:
    """IP or IP:port (kube-proxy: pkg/util/flag, IPPortVar); an empty one leaves the default in force."""
    if not value or canonical_address(value):
        return value
    host, colon, port = value.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        raise ValueError(f"{json.dumps(value)} is not in a valid format (ip or ip:port)")
    if not canonical_address(host.strip("[]")):
        raise ValueError(f"{json.dumps(host.strip('[]'))} is not a valid IP address")
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{json.dumps(port)} is not a valid number")
    return value


_BY_TYPE: dict[type, Callable[[str], Any]] = {str: _text, int: _integer, float: _duration, bool: _boolean, tuple: _list}
_BY_NAME: dict[str, Callable[[str], Any]] = {
    "kube_api_qps": _number,
    "feature_gates": _gates,
    "bind_address": _address,
    "healthz_bind_address": _address_port,
    "metrics_bind_address": _address_port,
}
_FILE_ONLY = (
    "kube_api_accept_content_types",
    "nftables_masquerade_bit",
    "nftables_sync_period",
    "nftables_min_sync_period",
)
"""Fields that kube-proxy has no flag for."""

_IPTABLES_PERIODS = ("iptables_sync_period", "iptables_min_sync_period")

DEPRECATED_PORTS = {
    "healthz-port": ("healthz_bind_address", HEALTHZ_PORT),
    "metrics-port": ("metrics_bind_address", METRICS_PORT),
}
"""Flags for a port alone, the address that each goes with, and its default."""


def _flag_table() -> dict[str, Flag]:
    table = {}
    for field in msgspec.structs.fields(ProxyConfig):
        if field.name in _FILE_ONLY:
            continue
        kind = type(field.default)
        parse = _BY_NAME.get(field.name, _BY_TYPE[kind])
        table[field.name.replace("_", "-")] = Flag(field.name, parse, kind is bool)
    table.update({name: Flag(name, _integer) for name in DEPRECATED_PORTS})
    switches = "alsologtostderr logtostderr one-output skip-headers add-dir-header log-text-split-stream"
    table.update({name: Flag("", _boolean, is_switch=True) for name in (*switches.split(), "log-json-split-stream")})
    texts = (
        "log-text-info-buffer-size log-json-info-buffer-size proxy-port-range log-dir log-file log-file-max-size "
        "log-backtrace-at stderrthreshold machine-id-file boot-id-file"
    )
    table.update({name: Flag("", _text) for name in texts.split()})
    return table


FLAGS = _flag_table()
_SHORT = {"v": "v", "h": "help"}
_KEPT_BESIDE_FILE = frozenset(
    [
        "hostname_override",
        "v",
        "vmodule",
        "logging_format",
        "log_flush_frequency",
        "cleanup",
        "init_only",
        "config",
        "write_config_to",
        "manifests",
        "master",
        "iptables_variant",
        "iptables_writer",
        "nftables_writer",
    ]
)
"""Fields whose flags count although --config is given (the last five kube-proxy's file has no field for)."""


def parse_arguments(argv: Sequence[str]) -> ProxyConfig:
    """The configuration that a command line means, read from --config if it names one.

    Raises:
        UserError: a flag is unknown or its value bad; every complaint about values at once.
    """
    return configuration(parse_flags(argv))


def configuration(values: Mapping[str, Any]) -> ProxyConfig:
    """The configuration that flags mean, read from the file that --config names if it is among them.

    Args:
        values: as from ``parse_flags``.

    Raises:
        UserError: the file cannot be read, or values are bad; every complaint about them at once.
    """
    if values.get("config"):
        from kproxy.proxy.config_file import read_file

        kept = {name: value for name, value in values.items() if name in _KEPT_BESIDE_FILE}
        config = ProxyConfig(**{**read_file(Path(values["config"])), **kept})
    else:
        config = _from_flags(values)
    if problems := validate(config):
        raise UserError("\n".join(problems))
    return config


def _from_flags(values: Mapping[str, Any]) -> ProxyConfig:
    """Addresses without a port get one; port 0 turns a server off (kube-proxy: options.go, Complete)."""
    config = ProxyConfig(**{name: value for name, value in values.items() if name not in DEPRECATED_PORTS})
    if config.is_nftables:
        config = _with_periods_of_iptables(config, values)
    if config.write_config_to:
        return config
    addresses = {}
    for flag, (field, default) in DEPRECATED_PORTS.items():
        port = values.get(flag, default)
        addresses[field] = with_port(getattr(config, field), port) if port else ""
    return msgspec.structs.replace(config, **addresses)


def _with_periods_of_iptables(config: ProxyConfig, values: Mapping[str, Any]) -> ProxyConfig:
    """Mode nftables has no such flags of its own, and obeys these (kube-proxy: options.go, processV1Alpha1Flags)."""
    periods = {name.replace("iptables", "nftables"): values[name] for name in _IPTABLES_PERIODS if name in values}
    return msgspec.structs.replace(config, **periods)


def ignored(values: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    """Names of the flags given that change nothing, in order: they mean nothing here, or --config stands over them.

    Args:
        values: as from ``parse_flags``.
        words: the arguments that it was given.
    """
    found = []
    for word in words:
        name = word.removeprefix("-").removeprefix("-").partition("=")[0].replace("_", "-")
        flag = FLAGS.get(name) if word.startswith("-") else None
        if flag is None:
            continue
        is_over = bool(values.get("config")) and flag.field not in _KEPT_BESIDE_FILE
        if not flag.field or flag.field in WITHOUT_EFFECT or is_over:
            found.append(f"--{name}")
    return list(dict.fromkeys(found))


def parse_flags(argv: Sequence[str], extra: Mapping[str, bool] | None = None) -> dict[str, Any]:
    """Field values of the flags given, and of nothing else.

    Args:
        argv: the arguments after the verb.
        extra: names of the caller's own flags, and whether each is a switch; their values are texts, by name.

    Raises:
        UserError: unknown flag, missing or malformed value.
    """
    own = {name: Flag(name, _boolean if switch else _text, switch) for name, switch in (extra or {}).items()}
    table = {**FLAGS, **own}
    values: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        shown, name, text = _split(word, table)
        flag = table[name]
        if text is None:
            text = "true" if flag.is_switch else _next(rest, word)
        try:
            value = flag.parse(text)
        except ValueError as error:
            raise UserError(f'invalid argument "{text}" for "{shown}" flag: {error}') from error
        if flag.field and not (flag.parse in (_address, _address_port) and value == ""):
            values[flag.field] = value
    return values


def _split(word: str, table: Mapping[str, Flag]) -> tuple[str, str, str | None]:
    """How a flag is named in messages, its name, and its value as far as it is in the same word."""
    if word.startswith("--") and len(word) > 2:
        name, equals, text = word[2:].partition("=")
        name = name.replace("_", "-")
        if not name or name.startswith("-"):
            raise UserError(f"bad flag syntax: {word}")
        if name not in table:
            raise UserError(f"unknown flag: --{name}")
        shown = f"-{name}, --{name}" if name in _SHORT else f"--{name}"
        return shown, name, text if equals else None
    if word.startswith("-") and len(word) > 1 and word != "--":
        letter, text = word[1], word[2:]
        if letter not in _SHORT or _SHORT[letter] not in table:
            raise UserError(f"unknown shorthand flag: '{letter}' in {word}")
        return f"-{letter}, --{_SHORT[letter]}", _SHORT[letter], text.removeprefix("=") if text else None
    raise UserError(f"unexpected argument {word!r}: only flags are taken")


def _next(rest: list[str], word: str) -> str:
    if not rest:
        is_short = not word.startswith("--")
        raise UserError(f"flag needs an argument: {f'{word[1]!r} in {word}' if is_short else word}")
    return rest.pop(0)
