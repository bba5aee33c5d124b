"""Verdicts that a log's own words give, where there is no operation to compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.naming import ranks_text, span_text
from tracecore_sidecar.verdicts import Confidence, Evidence, Severity, Suspect, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracecore_sidecar.offline.watchdog_log import LogFacts

_MS = 1_000_000
_ACTION = "look at the log of {who} at that time"
_NO_TIME = "time of the lines: not read"


def verdicts_of(facts: Iterable[LogFacts]) -> list[Verdict]:
    """Give one verdict for each kind of line that was found."""
    absent: dict[int, int] = {}
    joined: dict[int, tuple[int, int]] = {}
    gloo: dict[int, int] = {}
    for log in facts:
        absent |= log.barrier_absent
        joined |= log.store_barrier
        gloo |= log.gloo_timeouts
    found: list[Verdict] = []
    if absent:
        who, waited = ranks_text(absent), span_text(max(absent.values()) * _MS)
        text = f"{who} failed to pass a monitored barrier within {waited}"
        found.append(_verdict("never_entered", text, absent, text))
    if joined:
        found.append(_rendezvous(joined))
    if gloo and not found:
        waited = span_text(max(gloo.values()) * _MS)
        text = f"{ranks_text(gloo)} gave up on gloo after {waited}; the log does not tell on whom"
        found.append(_verdict("undetermined", text, (), text))
    return found


def _rendezvous(joined: dict[int, tuple[int, int]]) -> Verdict:
    world_size = max(size for size, _ in joined.values())
    num_joined = max(num for _, num in joined.values())
    # All that joined told so: then the others did not.
    is_whole = num_joined == len(joined)
    missing = [r for r in range(min(world_size, 131_072)) if r not in joined] if is_whole else []
    text = (
        f"{ranks_text(joined)} waited in the making of a process group: {num_joined} of "
        f"{world_size} ranks had joined"
    )
    summary = f"{ranks_text(missing)} never joined the process group; {text}" if missing else text
    return _verdict("rendezvous", summary, missing, text)


def _verdict(class_: str, summary: str, suspects: Iterable[int], text: str) -> Verdict:
    ranks = sorted(suspects)
    who = ranks_text(ranks) if ranks else "every rank"
    return Verdict(
        pattern="hang",
        class_=class_,
        severity=Severity.CRITICAL,
        confidence=Confidence.PARTIAL,
        summary=summary,
        suspects=tuple(Suspect(rank=rank) for rank in ranks),
        since_ns=0,
        evidence=(Evidence(kind="log", source="training log", time_ns=0, rank=None, text=text),),
        not_measured=(_NO_TIME, "collectives: no flight recorder dump was given"),
        actions=(_ACTION.format(who=who),),
    )
