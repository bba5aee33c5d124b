"""The engine goes on when one detector does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.unit.sidecar.test_store import SIDECAR, START
from tracecore_sidecar.detectors import Findings
from tracecore_sidecar.engine import Engine
from tracecore_sidecar.state.store import Store
from tracecore_train import guard
from tracecore_train.wire.records import Batch

if TYPE_CHECKING:
    import pytest

    from tracecore_sidecar.state.view import JobView


class Broken:
    """Fails at every look."""

    pattern = "broken"

    def initial_state(self) -> None:
        """Nothing to remember."""

    def evaluate(self, view: JobView, state: None, now: int) -> Findings[None]:
        """Fail."""
        raise ZeroDivisionError("no ranks")


class Counting:
    """Counts its looks in its state."""

    pattern = "counting"

    def initial_state(self) -> int:
        """Start at nothing."""
        return 0

    def evaluate(self, view: JobView, state: int, now: int) -> Findings[int]:
        """Count."""
        self.seen = state + 1
        return Findings(verdicts=(), state=state + 1)


def test_a_failing_detector_is_switched_off_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The failure is said once, reported as blind, and costs no other detector a look."""
    monkeypatch.setattr(guard, "raise_in_tests", False)
    counting = Counting()
    store = Store(job_id="job", node_rank=0, host="a07", boot_id="boot")
    engine = Engine(store, (Broken(), counting), wall_offset_ns=0)
    engine.apply(Batch(source=SIDECAR, records=(START,)))
    for now in (10, 20, 30):
        engine.tick(now)
    assert counting.seen == 3
    assert engine.blind() == (
        "detector broken: switched off after a failure of its own (ZeroDivisionError: no ranks)",
    )
    assert capsys.readouterr().err.count("detector broken failed") == 1
