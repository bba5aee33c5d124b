"""How each rank ended, and which was first: told from exit, last word and rank page together.

A launcher ends the other ranks by SIGTERM when one has failed, so most ends of a broken job are
consequences. SIGTERM that came before any failure is something else: an eviction, or a stop. A
SIGTERM whose moment was not noted (the ``sigterm`` hook is opt-in) is placed by the exits.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from tracecore_sidecar.detectors.naming import ranks_text
from tracecore_sidecar.state.view import UNKNOWN_EXIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tracecore_sidecar.state.view import JobView

LOOK_NS = 50_000_000
"""The launcher looks at its workers this often: two exits closer than that have no order."""
KILL_AFTER_NS = 10_000_000_000
"""A SIGKILL this long after another rank's failure is taken for the launcher's: its usual grace
after SIGTERM is 30 s. The kernel's OOM killer takes several ranks within seconds."""
_EXCEPTION_WORD = "exception"
_SIGTERM_EXITS = (-signal.SIGTERM, 128 + signal.SIGTERM)


class EndKind(str, Enum):
    """How a rank ended."""

    CLEAN = "clean"
    EXCEPTION = "exception"
    """An exception ended its main thread."""
    EXIT_CODE = "exit_code"
    """It gave an exit code other than 0 and no exception was seen."""
    SIGNAL = "signal"
    """A signal killed it."""
    TERMINATED = "terminated"
    """By SIGTERM, or the SIGKILL that follows it, after another rank had failed."""
    EVICTED = "evicted"
    """By SIGTERM before any rank seen here had failed."""
    VANISHED = "vanished"
    """Its process is gone; no last word, and nobody saw its exit."""


FAILURES = frozenset(
    {EndKind.EXCEPTION, EndKind.EXIT_CODE, EndKind.SIGNAL, EndKind.EVICTED, EndKind.VANISHED}
)
"""Ends that can be the first; the others are as they should be, or consequences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one rank ended."""

    rank: int
    kind: EndKind
    text: str
    """In words, without the rank."""
    time_ns: int
    """When it failed or ended: the exception, the SIGTERM that was noted, else the exit."""
    exit_code: int | None
    """Exit code, minus the number of a signal; None: nobody saw it."""
    last_word: str
    is_first: bool = False
    """It failed before all others; nobody is first where the order is not known."""


def endings(view: JobView) -> dict[int, Ending]:
    """Give the end of every rank that ended."""
    ended = np.flatnonzero(view.ranks.is_ended).tolist()
    found = {rank: _alone(view, rank) for rank in ended}
    terms = [end for end in found.values() if end.kind is EndKind.EVICTED]
    causes = [end for end in found.values() if end.kind in FAILURES - {EndKind.EVICTED}]
    for end in terms:
        earlier = [cause for cause in causes if not _is_before(view, end, cause)]
        if earlier:
            found[end.rank] = _after(end, earlier)
    for end in causes:
        earlier = [cause for cause in causes if end.time_ns - cause.time_ns >= KILL_AFTER_NS]
        if end.exit_code == -signal.SIGKILL and earlier:
            found[end.rank] = _after(end, earlier)
    first = _first(view, found.values())
    if first is not None:
        found[first] = replace(found[first], is_first=True)
    return found


def ending_lines(found: Mapping[int, Ending]) -> list[str]:
    """Say how the ranks ended: the first to fail first, equal ends in one line."""
    together: dict[tuple[bool, bool, str], list[int]] = {}
    for rank, end in sorted(found.items()):
        key = (not end.is_first, end.kind not in FAILURES, end.text)
        together.setdefault(key, []).append(rank)
    return [
        f"{ranks_text(ranks)}: {key[2]}{'' if key[0] else ' (the first to fail)'}"
        for key, ranks in sorted(together.items(), key=lambda item: (item[0][:2], item[1]))
    ]


def _alone(view: JobView, rank: int) -> Ending:
    """Judge one rank by itself; a SIGTERM counts as an eviction until a cause is found."""
    code = int(view.ranks.exit_code[rank])
    page = view.pages.get(rank)
    word = view.last_words.get(rank, "")
    sigterm_ns = 0 if page is None else page.sigterm_ns
    failed_ns, exception = _exception(view, rank)
    is_raised = word == _EXCEPTION_WORD or failed_ns > 0
    # A handler of the user's may raise to leave: then SIGTERM was there first.
    is_cause = is_raised and not 0 < sigterm_ns <= failed_ns
    ended_ns = int(view.ranks.exit_ns[rank]) or int(view.ranks.ended_ns[rank])
    seen = "its exit was not seen" if code == UNKNOWN_EXIT else _exit_text(code)
    if code == 0 or (code == UNKNOWN_EXIT and word and not is_raised):
        kind, text = EndKind.CLEAN, f"ended by itself, {seen}"
    elif is_cause:
        kind, text = EndKind.EXCEPTION, f"{exception or 'an exception'} ({seen})"
    elif sigterm_ns or code in _SIGTERM_EXITS:
        kind, text = EndKind.EVICTED, f"SIGTERM, and no rank seen here had failed ({seen})"
    elif code == UNKNOWN_EXIT:
        kind, text = EndKind.VANISHED, "gone without a last word, its exit was not seen"
    elif code < 0:
        kind, text = EndKind.SIGNAL, f"killed by {seen}"
    else:
        without = "" if word else ", without a last word (os._exit, or a crash in C)"
        kind, text = EndKind.EXIT_CODE, f"{seen}{without}"
    time_ns = failed_ns if kind is EndKind.EXCEPTION else ended_ns
    if kind is EndKind.EVICTED:
        time_ns = sigterm_ns or ended_ns
    return Ending(
        rank=rank,
        kind=kind,
        text=text,
        time_ns=time_ns or ended_ns,
        exit_code=None if code == UNKNOWN_EXIT else code,
        last_word=word,
    )


def _exception(view: JobView, rank: int) -> tuple[int, str]:
    """Give when an exception ended the main thread and what it was; 0 and nothing for none."""
    page, record = view.pages.get(rank), view.exceptions.get(rank)
    if record is not None and record.where == "main":
        frame = f" in {record.frame}" if record.frame else ""
        return record.time_ns, f"{record.type_name}{frame}: {record.message}"
    if page is not None and page.exception_ns:
        return page.exception_ns, page.exception
    return 0, ""


def _is_before(view: JobView, term: Ending, cause: Ending) -> bool:
    """Say whether SIGTERM is known to have come before a failure.

    A launcher sends it after it saw the cause's exit; a rank that fails because its peer was
    evicted fails when the peer is gone, and exits after it.
    """
    page = view.pages.get(term.rank)
    if page is not None and page.sigterm_ns:
        return page.sigterm_ns < cause.time_ns
    term_exit, cause_exit = (int(view.ranks.exit_ns[end.rank]) for end in (term, cause))
    if term_exit and cause_exit:
        return cause_exit - term_exit > LOOK_NS and cause.time_ns > term_exit - 2 * LOOK_NS
    return cause.time_ns - term.time_ns > LOOK_NS


def _after(end: Ending, causes: Iterable[Ending]) -> Ending:
    cause = min(causes, key=lambda cause: cause.time_ns)
    how = "SIGKILL long" if end.exit_code == -signal.SIGKILL else "SIGTERM"
    text = f"ended by the launcher: {how} after rank {cause.rank} had failed"
    return replace(end, kind=EndKind.TERMINATED, text=text)


def _first(view: JobView, found: Iterable[Ending]) -> int | None:
    """Give the rank that failed first; None where nobody failed or the order is not known."""
    failed = [end for end in found if end.kind in FAILURES]
    hosts = {int(view.ranks.host_index[end.rank]) for end in failed}
    if not failed or len(hosts) > 1:
        return None
    # An end that still counts as an eviction is known to have come before every failure.
    failed = [end for end in failed if end.kind is EndKind.EVICTED] or failed
    first, *others = sorted(failed, key=lambda end: end.time_ns)
    if others and others[0].time_ns - first.time_ns <= LOOK_NS and not _are_exact(first, others[0]):
        return None
    return first.rank


def _are_exact(*ends: Ending) -> bool:
    """Say whether these times were noted by the ranks themselves."""
    return all(end.kind is EndKind.EXCEPTION for end in ends)


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"
