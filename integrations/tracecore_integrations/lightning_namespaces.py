"""Lightning lives under two names, ``lightning.pytorch`` and ``pytorch_lightning``.

They are separate packages with separate base classes, and each ``Trainer`` knows only its own. A
callback that derives from the bases of every namespace in use works with both. Neither is
imported before a callback is made.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from typing import Any

NAMESPACES = ("lightning.pytorch", "pytorch_lightning")
"""Preferred first."""


def with_callback_bases(cls: type[Any]) -> type[Any]:
    """Give ``cls`` itself, or a class of the same name that derives from Lightning's too.

    Raises ``ImportError`` that names the cure when no Lightning is installed.
    """
    bases = tuple(base for base in _callback_bases() if not issubclass(cls, base))
    # To mypy a class hashes as its instances do.
    return _derived(cls, bases) if bases else cls  # type: ignore[arg-type]


def _callback_bases() -> list[type[Any]]:
    """Give the callback class of every imported namespace, else of the first installed one."""
    modules = [sys.modules[name] for name in NAMESPACES if name in sys.modules]
    bases = [module.Callback for module in modules if hasattr(module, "Callback")]
    return bases or [_import_installed().Callback]


def _import_installed() -> Any:
    for name in NAMESPACES:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            return importlib.import_module(name)
    raise ImportError(
        "TraceCoreCallback needs Lightning: pip install 'tracecore-train[lightning]', "
        "or pytorch-lightning"
    )


@functools.cache
def _derived(cls: type[Any], bases: tuple[type[Any], ...]) -> type[Any]:
    names = ("__module__", "__qualname__", "__doc__")
    attributes = {name: getattr(cls, name) for name in names}
    # Under the template's name pickle finds the template, so that is what it has to ask for.
    return type(cls.__name__, (cls, *bases), {**attributes, "_template": cls})
