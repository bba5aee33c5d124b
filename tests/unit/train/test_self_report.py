"""How a rank's signals stand is said once, and again when it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_train import guard as guard_module
from tracecore_train.guard import Guard
from tracecore_train.identity import read_identity
from tracecore_train.self_report import SelfReport
from tracecore_train.wire.records import IdentityRecord
from tracecore_train.wire.signals import given_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from tracecore_train.hooks.context import HookContext


class StubHook:
    """A hook that says what it is told to say."""

    def __init__(self, context: HookContext, guard: Guard) -> None:
        self.texts: list[str] = []
        self.error: Exception | None = None
        self.guard = guard
        self.name = guard.name

    def install(self) -> None: ...

    def uninstall(self) -> None: ...

    def blind(self) -> list[str]:
        if self.error is not None:
            raise self.error
        return self.texts


def stub(name: str) -> StubHook:
    return StubHook(None, Guard(name))  # type: ignore[arg-type]


def report_of(
    *hooks: StubHook,
    blind: Sequence[str] = (),
    off: Sequence[str] = (),
    guards: Sequence[Guard] = (),
) -> SelfReport:
    return SelfReport(
        read_identity(job_id="j", job_name="j", environ={}),
        blind=blind,
        off=off,
        hooks=[(hook, hook.guard) for hook in hooks],
        guards=[*(hook.guard for hook in hooks), *guards],
    )


def identity_of(report: SelfReport, *, is_full: bool = True) -> IdentityRecord:
    (identity,) = [r for r in report(is_full) if isinstance(r, IdentityRecord)]
    return identity


def test_installed_hooks_measure_their_signals() -> None:
    """Every signal of an installed hook, and the page, is measured until something speaks."""
    identity = identity_of(report_of(stub("optimizer"), stub("process_groups")))
    assert identity.measured == ("rank_page", "steps", *given_by("process_groups"))
    assert (identity.blind, identity.off) == ((), ())


def test_blind_and_off_are_not_measured() -> None:
    """A signal stands in exactly one of the three lists."""
    hook = stub("process_groups")
    hook.texts = ["collectives.counters: the recorder is off"]
    report = report_of(hook, blind=["rank_page: no room"], off=["sigterm"])
    identity = identity_of(report)
    assert identity.measured == ("process_groups",)
    assert identity.blind == ("rank_page: no room", "collectives.counters: the recorder is off")
    assert identity.off == ("sigterm",)


def test_a_change_is_told_and_sameness_is_not() -> None:
    """The identity comes once, again when a signal goes blind, and again when it is back."""
    hook = stub("optimizer")
    report = report_of(hook)
    assert identity_of(report, is_full=False).measured == ("rank_page", "steps")
    assert report(False) == []
    hook.texts = ["steps: gone"]
    assert identity_of(report, is_full=False).blind == ("steps: gone",)
    assert report(False) == []
    hook.texts = []
    assert identity_of(report, is_full=False).measured == ("rank_page", "steps")
    assert report(False) == []
    assert identity_of(report, is_full=True).blind == ()


def test_a_failing_hook_blinds_all_its_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hook off, each of its signals is blind with the exception, said in one go."""
    monkeypatch.setattr(guard_module, "raise_in_tests", False)
    hook, healthy = stub("dataloader"), stub("optimizer")
    hook.error = RuntimeError("sabotaged")
    identity = identity_of(report_of(hook, healthy))
    reason = "dataloader is switched off after RuntimeError: sabotaged"
    assert identity.blind == (f"input: {reason}", f"input.queue: {reason}")
    assert identity.measured == ("rank_page", "steps")


def test_a_hook_that_could_not_be_made_is_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that failed before there was a hook blinds what the hook would have given."""
    monkeypatch.setattr(guard_module, "raise_in_tests", False)
    guard = Guard("optimizer")
    with guard:
        raise ValueError("no")
    identity = identity_of(report_of(guards=[guard]))
    assert identity.blind == ("steps: optimizer is switched off after ValueError: no",)


def test_a_failure_of_no_hook_is_said_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of ours that is no hook gives no signal; its failure is not hidden for that."""
    monkeypatch.setattr(guard_module, "raise_in_tests", False)
    guard = Guard("export")
    with guard:
        raise ValueError("no")
    identity = identity_of(report_of(guards=[guard]))
    assert identity.blind == ("export: export is switched off after ValueError: no",)


def test_an_unavailable_hook_is_not_asked() -> None:
    """A hook closed at its installation adds nothing to what was said then."""
    hook = stub("optimizer")
    hook.texts = ["steps: asked all the same"]
    hook.guard.close()
    identity = identity_of(report_of(hook, blind=["steps: no torch"]))
    assert identity.blind == ("steps: no torch",)
    assert identity.measured == ("rank_page",)
