"""The doctor's answer: a table for people, or JSON."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.render import clean_text
from tracecore_train.__about__ import __version__
from tracecore_train.wire.signals import SignalState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracecore_sidecar.doctor.diagnosis import Finding
    from tracecore_sidecar.doctor.facts import Fact
    from tracecore_sidecar.doctor.trial import Trial

WIDTH = 100
FORMAT_VERSION = 1
"""Of the JSON; a reader of version 1 can read everything that says 1."""


def to_json(
    trial: Trial, facts: Sequence[Fact], findings: Sequence[Finding], host: str
) -> dict[str, Any]:
    """Give plain values."""
    return {
        "format_version": FORMAT_VERSION,
        "tracecore": __version__,
        "host": host,
        "torch": trial.said.get("torch"),
        "works": not trial.problems,
        "problems": list(trial.problems),
        "training_error": trial.said.get("error", ""),
        "machine": [
            {"name": fact.name, "text": fact.text, "is_good": fact.is_good, "way": fact.way}
            for fact in facts
        ],
        "signals": [
            {
                "name": finding.signal.name,
                "source": finding.signal.source.value,
                "shows": finding.signal.shows,
                "state": finding.state.value,
                "reason": finding.reason,
                "way": finding.way,
            }
            for finding in findings
        ],
    }


def render(trial: Trial, facts: Sequence[Fact], findings: Sequence[Finding], host: str) -> str:
    """Give the text, without a line end after its last line."""
    return "\n".join(_lines(trial, facts, findings, host))


def _lines(
    trial: Trial, facts: Sequence[Fact], findings: Sequence[Finding], host: str
) -> Iterator[str]:
    yield f"tracecore {__version__} on {host}, {_torch_text(trial)}"
    yield ""
    label = max(len(fact.name) for fact in facts) + 2
    for fact in facts:
        yield from _wrapped(fact.name, label, fact.text if fact.is_good else f"! {fact.text}")
        if fact.way:
            yield from _wrapped("", label, f"→ {fact.way}")
    yield ""
    label = max(len(finding.signal.name) for finding in findings) + 2
    yield f"{'signal':<{label}}state"
    for finding in findings:
        reason = f": {finding.reason}" if finding.reason else ""
        yield from _wrapped(finding.signal.name, label, f"{finding.state.value}{reason}")
        if finding.way:
            yield from _wrapped("", label, f"→ {finding.way}")
    yield ""
    counts = [
        f"{sum(finding.state is state for finding in findings)} {state.value}"
        for state in SignalState
    ]
    yield f"{', '.join(counts)}. What each signal shows: docs/signals.md"
    if error := trial.said.get("error"):
        yield from _wrapped("", 0, f"The rank of the trial could not train: {error}")
    if trial.problems:
        yield "The path does NOT work:"
        for problem in trial.problems:
            yield from _wrapped("", 2, problem)
    else:
        yield "The path works: a rank's records reached a sidecar."


def _torch_text(trial: Trial) -> str:
    version = trial.said.get("torch")
    if version:
        return f"torch {clean_text(str(version))}"
    error = trial.said.get("torch_error")
    if error:
        return f"torch cannot be imported ({clean_text(str(error))})"
    return "torch: not known, no rank came so far"


def _wrapped(name: str, label: int, text: str) -> list[str]:
    return textwrap.wrap(
        clean_text(text),
        WIDTH,
        initial_indent=f"{name:<{label}}",
        subsequent_indent=" " * label,
        break_on_hyphens=False,
    )
