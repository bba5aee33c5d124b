"""Joins what the rank says, what arrived and what the node shows into one finding per signal.

A rank's own word that a signal is measured is not enough where the trial can prove it: then a
record of that kind must have arrived.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracecore_sidecar import blindness
from tracecore_sidecar.doctor.node import PROBES
from tracecore_train.wire import records as rec
from tracecore_train.wire.signals import NOT_READ, SIGNALS, SignalSource, SignalState, name_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracecore_sidecar.doctor.trial import Trial
    from tracecore_train.wire.records import IdentityRecord, Record
    from tracecore_train.wire.signals import Signal

NOTHING_ARRIVED = "in the trial nothing of it arrived"
NOT_TRIED = "the trial did not come so far"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How one signal stands on this machine."""

    signal: Signal
    state: SignalState
    reason: str = ""
    """Why it is not measured."""
    way: str = ""
    """What the user can do about it; empty where there is nothing to do."""


def _is(kind: type[Record]) -> Callable[[Record], bool]:
    return lambda record: isinstance(record, kind)


PROOFS: Mapping[str, Callable[[Record], bool]] = {
    "rank_page": _is(rec.RankPageRecord),
    "steps": _is(rec.StepRecord),
    "step_parts": lambda r: isinstance(r, rec.StepRecord) and r.backward_ns >= 0,
    "input": lambda r: isinstance(r, rec.StepRecord) and r.num_batches > 0,
    "input.queue": lambda r: isinstance(r, rec.InputRecord) and r.num_outstanding >= 0,
    "checkpoint": _is(rec.CheckpointRecord),
    "process_groups": _is(rec.GroupRecord),
    "collectives.counters": _is(rec.ProgressRecord),
    "collectives.entries": _is(rec.CollectiveRecord),
    "stacks": lambda r: isinstance(r, rec.StackRecord) and not r.error,
    "host.process": _is(rec.ProcessRecord),
}
"""Signal -> what a record of the trial must be to prove it."""


def is_proven(records: Sequence[Record]) -> bool:
    """Say whether everything the rank claims to measure has arrived."""
    identities = [record for record in records if isinstance(record, rec.IdentityRecord)]
    if not identities:
        return False
    claimed = {*identities[-1].measured, "host.process"} & PROOFS.keys()
    if not any(isinstance(record, rec.StackRecord) for record in records):
        return False
    return all(any(PROOFS[name](record) for record in records) for name in claimed)


def diagnose(trial: Trial, root: Path = Path("/")) -> list[Finding]:
    """Give a finding per signal; ``root`` is where ``dev``, ``proc`` and ``sys`` lie."""
    # The launcher is not tried, only looked for: its signals are not this sidecar's to judge.
    node = blindness.of_this_node(is_launched=True)
    findings = []
    for signal in SIGNALS:
        if not signal.given_by:
            findings.append(_not_read(signal, root))
        elif trial.identity is None:
            findings.append(Finding(signal=signal, state=SignalState.BLIND, reason=NOT_TRIED))
        elif signal.source is SignalSource.LAUNCHER:
            findings.append(_of_launcher(signal, trial))
        elif signal.source is SignalSource.SIDECAR:
            findings.append(_proven(_told(signal, node), trial.records))
        elif signal.name in trial.identity.off:
            findings.append(_with_way(signal, SignalState.OFF, "not among the chosen hooks"))
        else:
            findings.append(_proven(_told(signal, trial.identity), trial.records))
    return findings


def _of_launcher(signal: Signal, trial: Trial) -> Finding:
    reason = str(trial.said.get("launcher", "torch is not there, and so no torchrun"))
    if reason:
        return _with_way(signal, SignalState.BLIND, reason)
    return Finding(signal=signal, state=SignalState.MEASURED)


def _told(signal: Signal, speaker: IdentityRecord | blindness.NodeSignals) -> Finding:
    reasons = [text.partition(": ")[2] for text in speaker.blind if name_in(text) == signal.name]
    if reasons:
        return _with_way(signal, SignalState.BLIND, "; ".join(reasons))
    if signal.name in speaker.measured:
        return Finding(signal=signal, state=SignalState.MEASURED)
    return Finding(signal=signal, state=SignalState.OFF, reason=NOT_READ)


def _proven(finding: Finding, records: Sequence[Record]) -> Finding:
    signal = finding.signal
    proof = PROOFS.get(signal.name)
    if finding.state is not SignalState.MEASURED or proof is None or any(map(proof, records)):
        return finding
    told = [reason for record in records if (reason := _why_not(signal.name, record))]
    return _with_way(signal, SignalState.BLIND, told[-1] if told else NOTHING_ARRIVED)


def _why_not(name: str, record: Record) -> str:
    """Give what a record says about why there is nothing of a signal."""
    if name == "stacks" and isinstance(record, rec.StackRecord):
        return record.error
    if name == "collectives.entries" and isinstance(record, rec.PullRecord):
        return record.reason
    return ""


def _not_read(signal: Signal, root: Path) -> Finding:
    obstacle = PROBES[signal.name](root) if signal.name in PROBES else ""
    if obstacle:
        return _with_way(signal, SignalState.OFF, f"{NOT_READ}, and {obstacle}")
    reason = f"{NOT_READ}, though it can be read here"
    return Finding(signal=signal, state=SignalState.OFF, reason=reason)


def _with_way(signal: Signal, state: SignalState, reason: str) -> Finding:
    return Finding(signal=signal, state=state, reason=reason, way=signal.way)
