"""Settings of the rank side: keyword arguments, then TRACECORE_* variables, then defaults.

:data:`ENVIRONMENT` is the one table of every variable the project reads or sets. An unknown name
or a bad value is a :class:`~tracecore_train.errors.ConfigError` that names it and what is
accepted.
"""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from tracecore_train.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_HOOKS = (
    "optimizer",
    "dataloader",
    "backward",
    "device_time",
    "checkpoint",
    "memory",
    "gc",
    "process_groups",
    "worker_server",
    "failure",
    "ptracer",
)
"""Hooks installed unless the user says otherwise."""
OPTIONAL_HOOKS: tuple[str, ...] = (
    "sigterm",
    "collective_timing",
    "point_to_point",
    "exact_collectives",
    "memory_peaks",
)
"""Hooks installed only where the user names them: they cost more, or change something."""
HOOK_NAMES = DEFAULT_HOOKS + OPTIONAL_HOOKS
"""Names accepted by the ``hooks`` setting; ``tracecore_train.hooks.HOOKS`` lists the same."""

ENVIRONMENT: Mapping[str, str] = {
    "TRACECORE_DISABLE": "1: nothing of ours runs in the rank; 0 or unset: it does",
    "TRACECORE_ENDPOINT": "the sidecar's socket, unix:/path/otlp.sock (set by `tracecore run`)",
    "TRACECORE_JOB_ID": "name of the job; the same on every node",
    "TRACECORE_RUNTIME_DIR": "directory for sockets and rank pages",
    "TRACECORE_LISTEN": "loopback address on which the sidecar takes OTLP, e.g. 127.0.0.1:4318",
    "TRACECORE_NCCL_PULL": "whether the sidecar may read the flight recorder of legacy NCCL "
    "and ask its RAS service: never (default), or on-suspicion",
    "TRACECORE_ON_HANG": "what follows a hang: report, dump, abort, or a command line",
    "TRACECORE_FLUSH_INTERVAL": "seconds between two hand-overs to the sidecar, 0.1 to 60",
    "TRACECORE_HOOKS": "hooks to install, comma separated; -NAME leaves one out, +NAME adds one: "
    + ", ".join(HOOK_NAMES),
    "TRACECORE_FAULT": "faults to rehearse (set by `tracecore run --fault`), see docs",
    "TRACECORE_BOOTSTRAP": "set by `tracecore run` in its children: start without a code change",
}
"""Every TRACECORE_* variable, with what it means."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one rank; see :func:`load_config`."""

    disable: bool = False
    """Run nothing at all."""
    endpoint: str | None = None
    """``unix:/path`` of the sidecar's socket; None: no sidecar, nothing is recorded."""
    job_id: str | None = None
    """Name of the job; None: taken from the scheduler or the launcher."""
    flush_interval: float = 1.0
    """Seconds between two hand-overs to the sidecar (0.1 to 60)."""
    hooks: tuple[str, ...] = DEFAULT_HOOKS
    """Hooks to install. ``"a,b"`` names them all, ``"-a,+b"`` changes the default."""
    fault: str | None = None
    """Faults to rehearse, in the grammar of ``tracecore_train.faults``."""


def load_config(
    overrides: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """Combine keyword arguments, environment and defaults into checked settings.

    ``environ`` is ``os.environ`` unless given. Raises :class:`ConfigError`.
    """
    environ = os.environ if environ is None else environ
    check_environment(environ)
    values: dict[str, object] = {}
    for field in fields(Config):
        variable = f"TRACECORE_{field.name.upper()}"
        if environ.get(variable, "") != "":
            values[field.name] = _PARSERS[field.name](variable, environ[variable])
    for name, value in (overrides or {}).items():
        if name not in _PARSERS:
            raise ConfigError(_unknown(f"init() argument {name!r}", name, tuple(_PARSERS)))
        if value is not None:
            values[name] = _PARSERS[name](f"init({name}=...)", value)
    return Config(**values)  # type: ignore[arg-type]  # each parser returns its field's type


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse TRACECORE_* variables that do not exist: a typo must not be silently ignored."""
    for name in environ:
        if name.startswith("TRACECORE_") and name not in ENVIRONMENT:
            raise ConfigError(_unknown(f"environment variable {name}", name, tuple(ENVIRONMENT)))


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown {what}{hint} Accepted: {', '.join(known)}"


def _parse_bool(where: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise ConfigError(f"{where}: {value!r} is not a switch; accepted: 1, 0, true, false")


def _parse_seconds(where: str, value: object) -> float:
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0.1 <= seconds <= 60:
        raise ConfigError(f"{where}: {value!r} is not a number of seconds from 0.1 to 60")
    return seconds


def _parse_endpoint(where: str, value: object) -> str:
    text = str(value)
    if not text.startswith("unix:/"):
        raise ConfigError(f"{where}: {text!r} is not accepted; give unix:/absolute/path/otlp.sock")
    return text


def _parse_text(where: str, value: object) -> str:
    text = str(value).strip()
    if not text or len(text) > 4096:
        raise ConfigError(f"{where}: expected a text of 1 to 4096 characters, got {len(text)}")
    return text


def _parse_hooks(where: str, value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)):
        raise ConfigError(f"{where}: {value!r} is not a list of hook names")
    words = [str(name).strip() for name in names if str(name).strip()]
    is_change = [word[0] in "+-" for word in words]
    if any(is_change) and not all(is_change):
        raise ConfigError(
            f"{where}: {', '.join(words)} mixes names with changes; give either the hooks to"
            f" install (optimizer,dataloader) or changes to the default (-dataloader,+NAME)"
        )
    for word in words:
        name = word[1:] if word[0] in "+-" else word
        if name not in HOOK_NAMES:
            raise ConfigError(_unknown(f"hook {name!r} in {where}", name, HOOK_NAMES))
    if not any(is_change):
        return tuple(words)
    removed = {word[1:] for word in words if word[0] == "-"}
    added = {word[1:] for word in words if word[0] == "+"}
    return tuple(n for n in HOOK_NAMES if (n in DEFAULT_HOOKS or n in added) and n not in removed)


_PARSERS: Mapping[str, Callable[[str, object], object]] = {
    "disable": _parse_bool,
    "endpoint": _parse_endpoint,
    "job_id": _parse_text,
    "flush_interval": _parse_seconds,
    "hooks": _parse_hooks,
    "fault": _parse_text,
}
