"""The user's own numbers: ``log(loss=..., tokens=..., grad_norm=...)``.

Each name gives one record a call, with the number of steps ended by then. What is no plain number
is refused, counted and said once; nothing is ever read from a device and nothing is raised.
"""

from __future__ import annotations

import math
import re

from tracecore_train.guard import Guard
from tracecore_train.plain_numbers import plain_number, way_out
from tracecore_train.recorder.clock import now_ns
from tracecore_train.recorder.pace import Pace
from tracecore_train.refusals import log_refusals
from tracecore_train.session import current_recorder
from tracecore_train.wire.records import RecordKind

MAX_NAMES = 64
"""Different names in one process; the sidecar keeps the last number of each."""
MAX_RATE = 1_000
"""Numbers a second. More would push step records out of the buffer they share."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]{0,79}\Z")
_SCALAR = RecordKind.SCALAR
_INFINITY = math.inf
_guard = Guard("log()")
_names: set[str] = set()
_pace = Pace(MAX_RATE)


def log(**values: object) -> None:
    """Record plain numbers under their names, at the step that runs.

    Names are letters, digits, ``_``, ``.``, ``/`` and ``-`` (``log(**{"train/loss": 0.3})``), 64
    different ones in all. NaN and infinities are recorded as such.
    """
    recorder = current_recorder()
    if recorder is None or not _guard.is_open:
        return
    with _guard:
        now, step = now_ns(), recorder.num_steps
        for name, value in values.items():
            number = value if type(value) is float else _number(name, value)
            if number is None or not (name in _names or _admit(name)) or not _has_room(now):
                continue
            if -_INFINITY < number < _INFINITY:
                recorder.append((_SCALAR, now, step, name, number))
            else:
                recorder.append((_SCALAR, now, step, name, None, str(number)))


def _number(name: str, value: object) -> float | None:
    number = plain_number(value)
    if number is None:
        log_refusals.add(type(value).__qualname__, f"{name[:80]}: {way_out(value)}")
    return number


def _admit(name: str) -> bool:
    if not _NAME.match(name):
        log_refusals.add(
            "name",
            f"{name[:80]!r} is not a name: 1 to 80 letters, digits, _ . / and -, a letter first",
        )
    elif len(_names) >= MAX_NAMES:
        log_refusals.add("names", f"{name} is one name too many, {MAX_NAMES} are kept")
    else:
        _names.add(name)
    return name in _names


def _has_room(now: int) -> bool:
    if _pace.allows(now):
        return True
    log_refusals.add("rate", f"more than {MAX_RATE} numbers a second; the rest is left out")
    return False
