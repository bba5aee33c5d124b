"""Where telemetry is forwarded to: OpenTelemetry's own variables, read once.

``OTEL_EXPORTER_OTLP_<SIGNAL>_<NAME>`` wins over ``OTEL_EXPORTER_OTLP_<NAME>``. What cannot be done
as asked turns forwarding of that signal off, with a reason: nothing is sent somewhere else, or
less protected, than asked. No text of ours shows a header or a password.
"""

from __future__ import annotations

import math
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tracecore_sidecar.otlp_signals import SIGNALS, Signal

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "OTEL_EXPORTER_OTLP_"
DEFAULT_TIMEOUT_S = 10.0
MILLISECONDS_FROM = 100.0
"""The specification counts OTEL_EXPORTER_OTLP_TIMEOUT in milliseconds, OpenTelemetry's Python SDK
in seconds, and jobs set it for either: smaller numbers are seconds."""
MAX_TIMEOUT_S = 60.0
MAX_HEADERS = 64
MAX_HEADER_TEXT = 8192
_OURS = frozenset({"content-type", "content-encoding", "content-length", "host", "connection"})
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """One signal's way upstream."""

    is_tls: bool
    host: str
    port: int
    target: str
    """Path and query."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_s: float = DEFAULT_TIMEOUT_S
    is_gzip: bool = True
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """Name the endpoint for people: no path, no user, no password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.port}"


class SettingsError(Exception):
    """A signal cannot be forwarded as asked; the text says why."""


def load_settings(
    environ: Mapping[str, str],
) -> tuple[dict[str, UpstreamSettings], list[str]]:
    """Give the settings per signal name, and why a signal that was asked for has none."""
    settings: dict[str, UpstreamSettings] = {}
    problems: list[str] = []
    for signal in SIGNALS:
        try:
            found = _of_signal(signal, environ)
        except SettingsError as error:
            problems.append(f"{signal.name}: {error}")
            continue
        if found is not None:
            settings[signal.name] = found
    return settings, problems


def _of_signal(signal: Signal, environ: Mapping[str, str]) -> UpstreamSettings | None:
    own = f"{PREFIX}{signal.name.upper()}_"

    def value(name: str) -> str:
        return environ.get(own + name, "").strip() or environ.get(PREFIX + name, "").strip()

    endpoint = environ.get(f"{own}ENDPOINT", "").strip()
    if not endpoint:
        base = environ.get(f"{PREFIX}ENDPOINT", "").strip()
        if not base:
            return None
        endpoint = base.rstrip("/") + signal.path
    protocol = value("PROTOCOL") or "http/protobuf"
    if protocol != "http/protobuf":
        raise SettingsError(f"{PREFIX}PROTOCOL is {protocol[:40]!r}; only http/protobuf is spoken")
    compression = value("COMPRESSION").lower() or "gzip"
    if compression not in {"gzip", "none"}:
        raise SettingsError(f"{PREFIX}COMPRESSION is {compression[:40]!r}; accepted: gzip, none")
    is_tls, host, port, target = _address(endpoint)
    return UpstreamSettings(
        is_tls=is_tls,
        host=host,
        port=port,
        target=target,
        headers=_headers(value("HEADERS")),
        timeout_s=_timeout_s(value("TIMEOUT")),
        is_gzip=compression == "gzip",
        tls=_tls(value("CERTIFICATE"), value("CLIENT_CERTIFICATE"), value("CLIENT_KEY"))
        if is_tls
        else None,
    )


def _address(endpoint: str) -> tuple[bool, str, int, str]:
    if not endpoint.isascii() or not endpoint.isprintable() or " " in endpoint:
        raise SettingsError("the endpoint is not a URL: it has characters that need escaping")
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        raise SettingsError("the endpoint is not a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError("the endpoint is not of the form http://host:port or https://host:port")
    if parts.username is not None:
        raise SettingsError(f"the endpoint holds a user name; put it into {PREFIX}HEADERS")
    is_tls = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return is_tls, parts.hostname, port or (443 if is_tls else 80), target


def _headers(text: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = item.partition("=")
        name, value = unquote(name.strip()).lower(), unquote(value.strip())
        is_named = bool(name) and _TOKEN.issuperset(name) and name not in _OURS
        is_valued = value.isascii() and (value.isprintable() or not value)
        if not (separator and is_named and is_valued):
            # Its text may be a secret.
            raise SettingsError(f"{PREFIX}HEADERS: item {len(headers) + 1} is not name=value")
        headers[name] = value
    if len(headers) > MAX_HEADERS or len(text) > MAX_HEADER_TEXT:
        raise SettingsError(f"{PREFIX}HEADERS: too many or too long")
    return headers


def _timeout_s(text: str) -> float:
    if not text:
        return DEFAULT_TIMEOUT_S
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise SettingsError(f"{PREFIX}TIMEOUT is {text[:40]!r}, not a positive number")
    seconds = number if number < MILLISECONDS_FROM else number / 1000
    return min(MAX_TIMEOUT_S, seconds)


def _tls(certificate: str, client_certificate: str, client_key: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=certificate or None)
    except OSError as error:
        raise SettingsError(f"{PREFIX}CERTIFICATE {certificate[:200]!r}: {error}") from None
    if bool(client_certificate) != bool(client_key):
        raise SettingsError(f"{PREFIX}CLIENT_CERTIFICATE and {PREFIX}CLIENT_KEY go together")
    if client_certificate:
        try:
            # The callback keeps OpenSSL from asking the terminal for a passphrase.
            context.load_cert_chain(client_certificate, client_key, password=lambda: "")
        except OSError as error:
            raise SettingsError(
                f"{PREFIX}CLIENT_CERTIFICATE {client_certificate[:200]!r}: {error}"
            ) from None
    return context
