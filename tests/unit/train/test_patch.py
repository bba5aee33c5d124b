"""A patch puts back exactly what it replaced, in any order of unwinding."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_train.hooks.patch import Patch

if TYPE_CHECKING:
    from collections.abc import Callable


class Base:
    def greet(self) -> str:
        return "base"

    @staticmethod
    def fixed() -> str:
        return "static"


class Child(Base):
    pass


def _wrapper(mark: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    def make(original: Callable[..., str]) -> Callable[..., str]:
        return lambda *args: f"{mark}({original(*args)})"

    return make


def _module() -> Any:
    module = types.ModuleType("patched")
    module.save = lambda: "saved"  # type: ignore[attr-defined]
    return module


def test_uninstall_restores_the_same_object() -> None:
    """After uninstall the attribute is the very object that was there."""
    module = _module()
    original = module.save
    patch = Patch(module, "save", _wrapper("a"))
    patch.install()
    assert module.save() == "a(saved)"
    assert patch.uninstall()
    assert module.save is original


def test_inherited_attribute_is_inherited_again() -> None:
    """Patching an inherited method leaves no attribute of its own behind."""
    patch = Patch(Child, "greet", _wrapper("a"))
    patch.install()
    assert Child().greet() == "a(base)"
    assert Base().greet() == "base"
    patch.uninstall()
    assert "greet" not in vars(Child)


def test_static_method_stays_static() -> None:
    """The raw attribute is put back, not what looking it up gives."""
    raw = vars(Base)["fixed"]
    patch = Patch(Base, "fixed", lambda original: staticmethod(_wrapper("a")(original)))
    patch.install()
    assert Base().fixed() == "a(static)"
    patch.uninstall()
    assert vars(Base)["fixed"] is raw


def test_uninstall_in_reverse_order() -> None:
    """Last in, first out restores the original."""
    module = _module()
    original = module.save
    first, second = Patch(module, "save", _wrapper("a")), Patch(module, "save", _wrapper("b"))
    first.install()
    second.install()
    assert module.save() == "b(a(saved))"
    assert second.uninstall()
    assert first.uninstall()
    assert module.save is original


def test_uninstall_below_somebody_elses_wrapper_leaves_the_chain() -> None:
    """When somebody wrapped us since, their wrapper stays and uninstall says it is not clean."""
    module = _module()
    ours, theirs = Patch(module, "save", _wrapper("a")), Patch(module, "save", _wrapper("b"))
    ours.install()
    theirs.install()
    wrapped = module.save
    assert not ours.uninstall()
    assert module.save is wrapped


def test_install_twice_wraps_once() -> None:
    """A second install changes nothing."""
    module = _module()
    patch = Patch(module, "save", _wrapper("a"))
    patch.install()
    patch.install()
    assert module.save() == "a(saved)"
    patch.uninstall()
    assert module.save() == "saved"


def test_missing_attribute_is_an_error() -> None:
    """Nothing is added where there was nothing."""
    module = _module()
    with pytest.raises(AttributeError):
        Patch(module, "load", _wrapper("a")).install()
    assert not hasattr(module, "load")
