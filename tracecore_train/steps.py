"""The user's own words: where a step ends, what it consists of, and what the rank is doing.

All do nothing, cheaply, when nothing is recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_train.guard import Guard
from tracecore_train.plain_numbers import plain_number, way_out
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.page import Text, Word
from tracecore_train.refusals import expect_refusals
from tracecore_train.session import current_recorder
from tracecore_train.wire.records import RecordKind

if TYPE_CHECKING:
    from types import TracebackType

    from tracecore_train.recorder.recorder import Recorder

MAX_NAME = 80
"""Characters of a phase's name that are kept."""
MAX_GLOBAL_STEP = 2**63 - 1
"""Largest step number that fits the wire."""
MAX_LIMIT_S = 30 * 86_400.0
"""Longest pause that can be announced."""
_PHASE_SINCE = int(Word.PHASE_SINCE)
_EXPECT_UNTIL = int(Word.EXPECT_UNTIL)
_step_guard = Guard("step()")
_microbatch_guard = Guard("microbatch()")
_phase_guard = Guard("phase()")


def step() -> None:
    """Say that a step ended here. From the first call on, only these calls end steps."""
    recorder = current_recorder()
    if recorder is not None and _step_guard.is_open:
        with _step_guard:
            recorder.claim_training_thread()
            recorder.end_explicit_step()


def microbatch(global_step: int | None = None) -> None:
    """Say that a microbatch begins here, and how many updates the training run made before it.

    The next step record carries the number of these calls and the last ``global_step``. For
    frameworks, and for loops that accumulate gradients or resume.
    """
    recorder = current_recorder()
    if recorder is not None and _microbatch_guard.is_open:
        with _microbatch_guard:
            number = None if global_step is None else int(global_step)
            if number is not None and not 0 <= number <= MAX_GLOBAL_STEP:
                raise ValueError("global_step is negative or does not fit 64 bits")
            if recorder.claim_training_thread():
                recorder.begin_microbatch(number)


class phase:  # noqa: N801  (used like a function: ``with phase("evaluation"):``)
    """Name what this rank does inside a ``with`` block; phases may be nested.

    The rank page shows the innermost: a rank that others wait for is given time there. A phase in
    which training goes on as usual, like an epoch, excuses nobody: ``is_shown=False`` records it
    when it ends and leaves the page alone. Inside an announced pause (:class:`expect`) the page
    goes on showing the pause.
    """

    __slots__ = (
        "_at_most_ns",
        "_began",
        "_is_shown",
        "_name",
        "_outer",
        "_outer_until",
        "_recorder",
    )

    def __init__(self, name: str, *, is_shown: bool = True) -> None:
        """Name the phase; long names are cut."""
        self._name = name
        self._is_shown = is_shown
        self._recorder: Recorder | None = None
        self._began = 0
        self._at_most_ns = 0
        self._outer: tuple[str, int] | None = None
        self._outer_until = 0

    def __enter__(self) -> None:
        """Begin the phase."""
        recorder = current_recorder()
        if recorder is None or not _phase_guard.is_open:
            return
        with _phase_guard:
            self._name = str(self._name)[:MAX_NAME]
            self._began = now_ns()
            if self._is_shown and recorder.claim_training_thread():
                self._show(recorder)
            self._recorder = recorder

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the phase, also by an exception, which goes on."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        if not _phase_guard.is_open:
            if self._outer is not None:
                words = recorder.page.words
                words[_PHASE_SINCE] = words[_EXPECT_UNTIL] = 0
            return
        with _phase_guard:
            now = now_ns()
            if self._outer is not None:
                recorder.page.words[_EXPECT_UNTIL] = self._outer_until
                if recorder.phase is not self._outer:
                    _show(recorder, self._outer)
                recorder.add_phase(self._name, self._began, now)
            recorder.append(
                (RecordKind.PHASE, now, self._name, now - self._began, self._at_most_ns)
            )

    def _show(self, recorder: Recorder) -> None:
        words = recorder.page.words
        self._outer = recorder.phase
        self._outer_until = until = words[_EXPECT_UNTIL]
        if self._at_most_ns:
            own_until = self._began + self._at_most_ns
            _show(recorder, (self._name, self._began))
            # Of several announcements that are open, the one that ends first binds.
            words[_EXPECT_UNTIL] = min(until, own_until) if until else own_until
        elif not until:
            _show(recorder, (self._name, self._began))


class expect(phase):  # noqa: N801  (used like a function, see ``phase``)
    """Announce a pause, and how many seconds it lasts at most: ``expect("export", at_most=600)``.

    A phase with a limit: until then a rank that others wait for is doing what it said; from then
    on the pause is a finding. An ``at_most`` that is no number of seconds is said once, and the
    pause is a phase without a limit.
    """

    __slots__ = ()

    def __init__(self, name: str, *, at_most: float) -> None:
        """Name the pause and limit it."""
        super().__init__(name)
        with _phase_guard:
            self._at_most_ns = _limit_ns(at_most)


def _limit_ns(at_most: object) -> int:
    seconds = plain_number(at_most)
    if seconds is not None and 0 < seconds <= MAX_LIMIT_S:
        return max(1, round(seconds * 1_000_000_000))
    if seconds is None:
        expect_refusals.add(type(at_most).__qualname__, f"at_most: {way_out(at_most)}")
    else:
        expect_refusals.add(
            "limit", f"at_most={seconds:g}: seconds, above 0 and at most {MAX_LIMIT_S:g}"
        )
    return 0


def _show(recorder: Recorder, shown: tuple[str, int]) -> None:
    recorder.phase = shown
    name, since = shown
    page = recorder.page
    page.words[_PHASE_SINCE] = 0
    page.write_text(Text.PHASE, name)
    page.words[_PHASE_SINCE] = since
