"""TraceCore Train, the rank side: records what a training process does.

Under ``tracecore run`` no code is needed. Under plain ``torchrun``::

    import tracecore_train

    tracecore_train.init()          # finds the sidecar by TRACECORE_ENDPOINT
    for batch in loader:
        ...
        optimizer.step()            # steps are seen by themselves
    with tracecore_train.phase("evaluation"):
        evaluate(model)

Importing this package imports nothing but the standard library, and only names that are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_train.__about__ import __version__

if TYPE_CHECKING:
    from tracecore_train.errors import ConfigError, TracecoreError
    from tracecore_train.scalars import log
    from tracecore_train.session import Session, init, shutdown
    from tracecore_train.steps import expect, microbatch, phase, step

__all__ = [
    "ConfigError",
    "Session",
    "TracecoreError",
    "__version__",
    "expect",
    "init",
    "log",
    "microbatch",
    "phase",
    "shutdown",
    "step",
]

_HOME = {
    "ConfigError": "tracecore_train.errors",
    "TracecoreError": "tracecore_train.errors",
    "Session": "tracecore_train.session",
    "init": "tracecore_train.session",
    "shutdown": "tracecore_train.session",
    "expect": "tracecore_train.steps",
    "log": "tracecore_train.scalars",
    "microbatch": "tracecore_train.steps",
    "phase": "tracecore_train.steps",
    "step": "tracecore_train.steps",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
