"""A verdict as a block of text for a person.

The head says what is wrong and how sure that is; labelled lines below say who, since when, what
it costs, why, what speaks against it, what was not seen and what to do. Texts from outside (phase
names, stacks, file names) lose every control character: nothing here can steer a terminal.
"""

from __future__ import annotations

import textwrap
from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tracecore_sidecar.verdicts import Suspect, Verdict

WIDTH = 100
"""Columns of the block."""
MAX_SUSPECTS = 8
"""Suspects with a line of their own; the others are counted."""
MAX_TEXT = 1_000
"""Characters of one text that are shown."""
_LABEL_WIDTH = 9
_SECOND = 1_000_000_000


def render_text(verdict: Verdict, *, now_ns: int | None, wall_offset_ns: int) -> str:
    """Give the block, without a line end after its last line. Times are local.

    ``now_ns`` is the moment of the verdict; without one the date is told instead of an age.
    """
    lines = list(_head(verdict))
    lines += _labelled("Suspect", _suspect_lines(verdict))
    lines += _labelled("Since", [_since(verdict, now_ns, wall_offset_ns)])
    if verdict.cost is not None:
        lines += _labelled("Cost", [verdict.cost.text])
    lines += _labelled("Why", [item.text for item in verdict.evidence])
    against = [item.text for item in verdict.contradicting]
    lines += _labelled("Against", against or ["nothing found"])
    if verdict.not_measured:
        unseen = ", ".join(_in_brackets(thing) for thing in verdict.not_measured)
        lines += _labelled("Not seen", [unseen])
    lines += _labelled("Next", verdict.actions)
    return "\n".join(lines)


def clean_text(text: str) -> str:
    """Give ``text`` as words on one line; see :func:`clean_line`."""
    return clean_line(" ".join(text[: MAX_TEXT + 1].split()))


def clean_line(line: str) -> str:
    """Give ``line`` shortened and with ``?`` for what is not printable; spaces stay."""
    shown = line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"
    return "".join(char if char.isprintable() else "?" for char in shown)


def suspect_text(suspect: Suspect) -> str:
    """Give a suspect in one line, e.g. ``rank 1 · host a07 · GPU 1 (GPU-5f1c…) · pid 4121``."""
    parts = [] if suspect.rank is None else [f"rank {suspect.rank}"]
    if suspect.rank is None or suspect.kind.value not in {"rank", "process"}:
        parts.append(suspect.kind.value)
    if suspect.host is not None:
        parts.append(f"host {suspect.host}")
    if suspect.gpu_uuid is not None:
        uuid = suspect.gpu_uuid if len(suspect.gpu_uuid) <= 9 else suspect.gpu_uuid[:8] + "…"
        index = "" if suspect.local_rank is None else f" {suspect.local_rank}"
        parts.append(f"GPU{index} ({uuid})")
    if suspect.pid is not None:
        parts.append(f"pid {suspect.pid}")
    return clean_text(" · ".join(parts))


def local_time(wall_ns: int) -> str:
    """Give wall-clock nanoseconds as local ``HH:MM:SS``."""
    return f"{_moment(wall_ns):%H:%M:%S}"


def _moment(wall_ns: int) -> datetime:
    return datetime.fromtimestamp(wall_ns // _SECOND, tz=timezone.utc).astimezone()


def age_text(age_ns: int) -> str:
    """Give an age in words: ``8 s``, ``12 min``, ``3 h 05 min``."""
    seconds = max(0, age_ns) // _SECOND
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _head(verdict: Verdict) -> Iterator[str]:
    name = verdict.pattern.upper().replace("_", " ") + "  "
    confidence = f"confidence: {verdict.confidence.value}"
    room = WIDTH - len(confidence) - 2
    wrapped = _wrap(clean_text(verdict.summary), name, " " * len(name), room)
    yield f"{wrapped[0]:<{room}}  {confidence}"
    yield from wrapped[1:]


def _labelled(label: str, texts: Iterable[str]) -> Iterator[str]:
    """Give lines under one label; each text starts a line of its own."""
    first = f"{label:<{_LABEL_WIDTH}}"
    for text in texts:
        yield from _wrap(clean_text(text), first, " " * _LABEL_WIDTH, WIDTH)
        first = " " * _LABEL_WIDTH


def _wrap(text: str, first: str, following: str, width: int) -> list[str]:
    wrapped = textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=following,
        break_on_hyphens=False,
    )
    return wrapped or [first.rstrip()]


def _suspect_lines(verdict: Verdict) -> list[str]:
    lines = [suspect_text(suspect) for suspect in verdict.suspects[:MAX_SUSPECTS]]
    if len(verdict.suspects) > MAX_SUSPECTS:
        lines.append(f"and {len(verdict.suspects) - MAX_SUSPECTS} more")
    return lines or ["nobody is named"]


def _since(verdict: Verdict, now_ns: int | None, wall_offset_ns: int) -> str:
    onset_ns = verdict.since_ns + wall_offset_ns
    if now_ns is not None:
        return f"{local_time(onset_ns)}, {age_text(now_ns - verdict.since_ns)} ago"
    return f"{_moment(onset_ns):%Y-%m-%d %H:%M:%S}" if onset_ns > 0 else "not told"


def _in_brackets(thing: str) -> str:
    """Turn ``thing: reason`` into ``thing (reason)``."""
    name, separator, reason = thing.partition(": ")
    return f"{name} ({reason})" if separator else thing
