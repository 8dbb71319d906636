"""What the proxy trusts and shows: certificates and tokens, from a kubeconfig's data or from files that rotate.

Rules: k8s.io/client-go, transport/token_source.go and transport/cert_rotation.go.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from kproxy.errors import UserError

_LOG = logging.getLogger(__name__)
TOKEN_PERIOD: Final = 60.0
"""Seconds after which a token file is read again (client-go: transport/token_source.go)."""
PLUGIN_PAUSE: Final = 10.0
"""Seconds before credentials that the server refused are fetched again."""


class Trust(msgspec.Struct, frozen=True, rename="kebab"):
    """Whom to trust: the fields of a kubeconfig's cluster entry that say so; names of files are relative to it."""

    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False


class Shown(msgspec.Struct, frozen=True, rename="kebab"):
    """What to show: the fields of a kubeconfig's user entry that say so; names of files are relative to it."""

    token: str = ""
    token_file: str = msgspec.field(name="tokenFile", default="")
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""


class FileCredentials:
    """Certificates and tokens from data, or from files that are read again when they change.

    Args:
        trust: whom to trust.
        shown: what to show.
        folder: what names of files are relative to.

    Raises:
        UserError: something cannot be read, or is none.
    """

    def __init__(self, trust: Trust, shown: Shown, folder: Path) -> None:
        self._trust = trust
        self._shown = shown
        self._folder = folder
        self._lock = threading.Lock()
        self._context, self._context_of = self._make_context(), self._signatures()
        self._token = self._read_token()
        self._is_due = time.monotonic() + TOKEN_PERIOD

    def ssl_context(self) -> Any:
        """See kproxy.client.Credentials."""
        with self._lock:
            if (now := self._signatures()) != self._context_of:
                try:
                    self._context, self._context_of = self._make_context(), now
                except UserError as error:  # perhaps half of a pair is written yet
                    _LOG.warning("the certificates of before stay in use: %s", error)
            return self._context

    def headers(self) -> Mapping[str, str]:
        """See kproxy.client.Credentials."""
        with self._lock:
            if self._shown.token_file and time.monotonic() > self._is_due:
                self._renew_token()
            return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def renew(self) -> bool:
        """See kproxy.client.Credentials."""
        with self._lock:
            is_new = self._signatures() != self._context_of
            return self._renew_token() or is_new

    def _renew_token(self) -> bool:
        before = self._token
        self._is_due = time.monotonic() + TOKEN_PERIOD
        try:
            self._token = self._read_token()
        except UserError as error:
            _LOG.warning("the token of before stays in use: %s", error)
        return self._token != before

    def _read_token(self) -> str:
        if not self._shown.token_file:
            return self._shown.token
        path = self._folder / self._shown.token_file
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"token file {path}: {error}") from error
        if not token:
            raise UserError(f"token file {path} is empty")
        return token

    def _files(self) -> list[Path]:
        trust, shown = self._trust, self._shown
        pairs = (
            (trust.certificate_authority, trust.certificate_authority_data),
            (shown.client_certificate, shown.client_certificate_data),
            (shown.client_key, shown.client_key_data),
        )
        return [self._folder / file for file, data in pairs if file and not data]

    def _signatures(self) -> list[tuple[int, int] | None]:
        found: list[tuple[int, int] | None] = []
        for path in self._files():
            try:
                status = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_ino, status.st_mtime_ns))
        return found

    def _make_context(self) -> ssl.SSLContext:
        trust, shown = self._trust, self._shown
        try:
            context = context_of(trust.insecure_skip_tls_verify, self._bytes("certificate-authority", trust))
            certificate = self._bytes("client-certificate", shown)
            key = self._bytes("client-key", shown)
            if certificate or key:
                with _as_file(certificate) as certificate_path, _as_file(key) as key_path:
                    context.load_cert_chain(certificate_path, key_path)
        except (OSError, ValueError) as error:
            raise UserError(f"a certificate or key cannot be used: {error}") from error
        return context

    def _bytes(self, field: str, of: Trust | Shown) -> bytes:
        """The content that a pair of fields means, data before file; empty for neither."""
        name = field.replace("-", "_")
        if data := getattr(of, f"{name}_data"):
            return b64decode(data, validate=True)
        file = getattr(of, name)
        return (self._folder / file).read_bytes() if file else b""


class PluginCredentials:
    """What the official client library makes of a user entry: exec plugins, auth providers, passwords.

    Args:
        kubeconfig: the file.

    Raises:
        UserError: the library is not installed, or nothing comes of the entry.
    """

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig
        self._lock = threading.Lock()
        self._configuration = self._load()
        self._loaded = time.monotonic()

    def ssl_context(self) -> Any:
        """See kproxy.client.Credentials."""
        with self._lock:
            configuration = self._configuration
            authority = Path(configuration.ssl_ca_cert).read_bytes() if configuration.ssl_ca_cert else b""
            context = context_of(not configuration.verify_ssl, authority)
            if configuration.cert_file:
                context.load_cert_chain(configuration.cert_file, configuration.key_file)
            return context

    def headers(self) -> Mapping[str, str]:
        """See kproxy.client.Credentials."""
        with self._lock:
            # The library looks itself whether the token has run out, and then asks the plugin again.
            settings = self._configuration.auth_settings().get("BearerToken")
            return {"Authorization": settings["value"]} if settings and settings["value"] else {}

    def renew(self) -> bool:
        """See kproxy.client.Credentials."""
        with self._lock:
            if time.monotonic() < self._loaded + PLUGIN_PAUSE:
                return False
            self._loaded = time.monotonic()
            try:
                self._configuration = self._load()
            except UserError as error:
                _LOG.warning("the credentials of before stay in use: %s", error)
                return False
            return True

    def _load(self) -> Any:
        try:
            from kubernetes.client import Configuration
            from kubernetes.config import ConfigException, load_kube_config
        except ImportError as error:
            raise UserError(f"{self._kubeconfig} needs the Python package `kubernetes`: {error}") from error
        configuration = Configuration()
        try:
            load_kube_config(  # type: ignore[no-untyped-call]
                str(self._kubeconfig), client_configuration=configuration, persist_config=False
            )
        except (ConfigException, OSError, ValueError, KeyError) as error:
            raise UserError(f"{self._kubeconfig}: {error}") from error
        if not (configuration.auth_settings() or configuration.cert_file):
            raise UserError(f"{self._kubeconfig}: the user's plugin gave neither a token nor a certificate")
        return configuration


def context_of(is_insecure: bool, authority: bytes) -> ssl.SSLContext:
    """What is checked of a server: that an authority signed for its name, or nothing.

    Args:
        is_insecure: check nothing.
        authority: PEM; empty means the system's authorities.
    """
    if is_insecure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if not authority:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.decode("ascii"))
    return context


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path under which OpenSSL, which takes nothing else, finds the content; never on a disk."""
    descriptor = os.memfd_create("pem")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
