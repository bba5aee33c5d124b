"""Replace one attribute and put back exactly what was there.

A wrapper asks its hook's guard and calls the original straight when the guard is closed. That
is what makes :meth:`Patch.uninstall` safe when somebody wrapped us since: taking our wrapper out
would cut theirs off, so it stays in the chain and passes through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_MISSING = object()


class Patch:
    """One attribute of one module or class."""

    def __init__(self, target: object, name: str, make_wrapper: Callable[[Any], Any]) -> None:
        """Prepare to replace ``target.name`` by ``make_wrapper(what is there)``."""
        self._target = target
        self._name = name
        self._make_wrapper = make_wrapper
        self._own: object = _MISSING
        self._wrapper: object = _MISSING

    def install(self) -> None:
        """Replace the attribute. Raises ``AttributeError`` where there is none."""
        if self._wrapper is not _MISSING:
            return
        original = getattr(self._target, self._name)
        self._own = vars(self._target).get(self._name, _MISSING)
        self._wrapper = self._make_wrapper(original)
        setattr(self._target, self._name, self._wrapper)

    def uninstall(self) -> bool:
        """Put the original back; say False when our wrapper had to stay in the chain."""
        if self._wrapper is _MISSING:
            return True
        current = vars(self._target).get(self._name, _MISSING)
        is_ours = current is self._wrapper
        if is_ours and self._own is _MISSING:
            delattr(self._target, self._name)
        elif is_ours:
            setattr(self._target, self._name, self._own)
        self._own = self._wrapper = _MISSING
        return is_ours
