"""Faults to rehearse: trouble on one rank at one step, as a text that can be checked.

``slow:rank=1,ms=50,from=40,where=backward`` makes a rank late in every step from 40 on,
``hang:rank=1,at=60,for=30`` stops it once for 30 seconds, ``kill:rank=1,at=60`` ends it. Several
are joined by ``;``. This module is the grammar; ``rehearsal.py`` makes the trouble. Neither knows
the recorder: what the detectors see of a rehearsed fault is what they would see of a real one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracecore_train.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_FAULTS = 64
"""Faults in one text."""
MAX_SECONDS = 86_400
"""Longest delay: a day."""
MAX_NUMBER = 10**9
"""Largest rank or step."""

_DELAY_PLACES = ("host", "forward", "backward", "input", "checkpoint")
_KEYS = {
    "slow": ("rank", "ms", "from", "to", "every", "where", "attempt"),
    "hang": ("rank", "at", "for", "where", "how", "attempt"),
    "kill": ("rank", "at", "signal", "where", "attempt"),
}
_REQUIRED = {"slow": ("rank", "ms"), "hang": ("rank", "at", "for"), "kill": ("rank", "at")}
_PLACES = {"slow": _DELAY_PLACES[:-1], "hang": _DELAY_PLACES, "kill": _DELAY_PLACES}
_WAYS = ("sleep", "gil", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One piece of trouble on one rank; the first step of a process is step 0."""

    kind: str
    """``slow`` acts once in each step it is due in; ``hang`` and ``kill`` act once."""
    rank: int
    first_step: int
    """The step it begins in (``hang`` and ``kill``: the first chance in or after it)."""
    last_step: int | None = None
    """Last step a slowness is due in; None: it does not end."""
    every: int = 1
    """A slowness is due in every ``every``-th step, counted from ``first_step``."""
    duration_ns: int = 0
    where: str = "host"
    """``host`` (between two steps), ``forward``, ``backward``, ``input`` or ``checkpoint``."""
    how: str = "sleep"
    """``sleep``, ``gil`` (sleep holding the GIL) or ``stop`` (the process is stopped)."""
    signal: int = 9
    """What kills the rank."""
    attempt: int = 0
    """The attempt it acts in: after a restart the job is left alone."""

    def is_due(self, step: int) -> bool:
        """Say whether the fault should act in a step, if it has not acted in it yet."""
        if self.kind != "slow":
            return step >= self.first_step
        if self.last_step is not None and step > self.last_step:
            return False
        return step >= self.first_step and (step - self.first_step) % self.every == 0

    def describe(self) -> str:
        """Give the fault in words, for the line that says a rehearsal is active."""
        if self.kind == "kill":
            return f"signal {self.signal} ({self.where}) at step {self.first_step}"
        if self.kind == "hang":
            seconds = self.duration_ns / 1e9
            return f"hang of {seconds:g} s ({self.where}, {self.how}) at step {self.first_step}"
        often = "every step" if self.every == 1 else f"every {self.every} steps"
        until = "" if self.last_step is None else f" to {self.last_step}"
        late = f"{self.duration_ns / 1e6:g} ms in {self.where}"
        return f"slow by {late}, {often} from {self.first_step}{until}"


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Read faults; raise :class:`ConfigError` naming the bad value and what is accepted."""
    parts = [part.strip() for part in text.split(";") if part.strip()]
    if not parts:
        raise ConfigError("no fault given; for example slow:rank=1,ms=50,from=40,where=backward")
    if len(parts) > MAX_FAULTS:
        raise ConfigError(f"{len(parts)} faults given, at most {MAX_FAULTS}")
    return tuple(_parse_fault(part) for part in parts)


def install(faults: Sequence[Fault], *, rank: int, attempt: int) -> Callable[[], None]:
    """Arm the faults of this rank and attempt; give the function that takes them out again.

    Needs torch. Says in one line on standard error that a rehearsal is active; where no fault
    is for this rank and attempt, nothing is installed and nothing said.
    """
    ours = tuple(fault for fault in faults if (fault.rank, fault.attempt) == (rank, attempt))
    if not ours:
        return _nothing
    from tracecore_train.rehearsal import Rehearsal

    rehearsal = Rehearsal(ours, rank=rank)
    rehearsal.install()
    return rehearsal.uninstall


def _parse_fault(text: str) -> Fault:
    kind, _, rest = text.partition(":")
    kind = kind.strip()
    if kind not in _KEYS:
        raise ConfigError(f"fault {text!r}: kind {kind!r} is unknown; accepted: {_list(_KEYS)}")
    values = _parse_pairs(text, kind, rest)
    missing = [key for key in _REQUIRED[kind] if key not in values]
    if missing:
        raise ConfigError(f"fault {text!r}: {_list(missing)} missing; {kind} needs it")
    where = values.get("where", "host")
    _check_word(text, "where", where, _PLACES[kind])
    how = values.get("how", "sleep")
    _check_word(text, "how", how, _WAYS)
    first_step = _number(text, "at", values["at"]) if "at" in values else None
    if first_step is None:
        first_step = _number(text, "from", values["from"]) if "from" in values else 0
    elif first_step == 0 and where == "host":
        raise ConfigError(
            f"fault {text!r}: at=0 with where=host never acts, host is between two steps; "
            "give at=1 or another where"
        )
    last_step = _number(text, "to", values["to"]) if "to" in values else None
    if last_step is not None and last_step < first_step:
        raise ConfigError(f"fault {text!r}: to={last_step} lies before from={first_step}")
    seconds = 0.0
    if "ms" in values:
        seconds = _seconds(text, "ms", values["ms"], per_unit=1e-3)
    elif "for" in values:
        seconds = _seconds(text, "for", values["for"], per_unit=1.0)
    return Fault(
        kind=kind,
        rank=_number(text, "rank", values["rank"]),
        first_step=first_step,
        last_step=last_step,
        every=_number(text, "every", values.get("every", "1"), low=1),
        duration_ns=round(seconds * 1e9),
        where=where,
        how=how,
        signal=_number(text, "signal", values.get("signal", "9"), low=1, high=64),
        attempt=_number(text, "attempt", values.get("attempt", "0")),
    )


def _parse_pairs(text: str, kind: str, rest: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for pair in rest.split(","):
        key, equals, value = (word.strip() for word in pair.partition("="))
        if key not in _KEYS[kind]:
            raise ConfigError(
                f"fault {text!r}: {kind} has no {key!r}; accepted: {_list(_KEYS[kind])}"
            )
        if not equals or not value:
            raise ConfigError(f"fault {text!r}: {key} has no value; write {key}=value")
        if key in values:
            raise ConfigError(f"fault {text!r}: {key} is given twice")
        values[key] = value
    return values


def _check_word(text: str, key: str, value: str, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise ConfigError(f"fault {text!r}: {key}={value!r}; accepted: {_list(accepted)}")


def _number(text: str, key: str, value: str, *, low: int = 0, high: int = MAX_NUMBER) -> int:
    # isdecimal() alone accepts digits of other scripts, and int() underscores.
    is_number = value.isascii() and value.isdecimal() and len(value) <= len(str(MAX_NUMBER))
    if not is_number or not low <= int(value) <= high:
        raise ConfigError(f"fault {text!r}: {key}={value!r} is not a whole number {low} to {high}")
    return int(value)


def _seconds(text: str, key: str, value: str, *, per_unit: float) -> float:
    try:
        seconds = float(value) * per_unit
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_SECONDS:
        raise ConfigError(
            f"fault {text!r}: {key}={value!r} is not a number above 0, "
            f"at most {MAX_SECONDS / per_unit:.0f}"
        )
    return seconds


def _list(words: Sequence[str] | dict[str, tuple[str, ...]]) -> str:
    return ", ".join(words)


def _nothing() -> None:
    """Take out what was never installed."""
