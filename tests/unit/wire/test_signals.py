"""The table of signals names what exists, once, and the docs say the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tracecore_sidecar.doctor.diagnosis import PROOFS
from tracecore_sidecar.doctor.node import PROBES
from tracecore_train.config import HOOK_NAMES
from tracecore_train.wire import signals
from tracecore_train.wire.signals import BY_NAME, SIGNALS, Signal, SignalSource

ROOT = Path(__file__).resolve().parents[3]
HOMES = {
    SignalSource.SIDECAR: "tracecore_sidecar.sources",
    SignalSource.LAUNCHER: "tracecore_integrations",
}


def row(signal: Signal) -> str:
    """The signal's line in docs/signals.md."""
    giver = f"`{signal.given_by}`" if signal.given_by else "nothing yet"
    return f"| `{signal.name}` | {signal.source.value}: {giver} | {signal.shows} | {signal.way} |"


def test_every_signal_has_a_name_of_its_own() -> None:
    """No two signals share a name, and none lacks a purpose or a way."""
    assert len(BY_NAME) == len(SIGNALS)
    assert all(signal.shows and signal.way for signal in SIGNALS)
    assert not any(char in signal.name for signal in SIGNALS for char in ": ,")


@pytest.mark.parametrize("name", HOOK_NAMES)
def test_every_hook_gives_a_signal(name: str) -> None:
    """A hook without a signal could be blind and nobody would know of what."""
    assert signals.given_by(name)


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
def test_every_giver_exists(signal: Signal) -> None:
    """A signal is given by a hook, or by a module that is there, or by nothing yet."""
    if signal.source is SignalSource.RANK:
        assert signal.given_by in (signals.PAGE, *HOOK_NAMES)
    elif signal.given_by:
        assert importlib.util.find_spec(f"{HOMES[signal.source]}.{signal.given_by}")


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
def test_the_page_says_what_the_table_says(signal: Signal) -> None:
    """docs/signals.md holds this signal's row, word for word."""
    assert row(signal) in (ROOT / "docs" / "signals.md").read_text().splitlines()


def test_the_page_has_no_signal_of_its_own() -> None:
    """docs/signals.md lists nothing that the table does not."""
    lines = (ROOT / "docs" / "signals.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| `")] == [row(s) for s in SIGNALS]


def test_the_doctor_knows_no_other_signals() -> None:
    """What it proves and probes stands in the table; it probes all that nothing reads yet."""
    assert PROOFS.keys() <= BY_NAME.keys()
    assert {signal.name for signal in SIGNALS if not signal.given_by} <= PROBES.keys()


def test_a_reason_is_told_of_each_signal() -> None:
    """A name before the reason is taken off; a text without one is all reason."""
    assert list(signals.explain(("steps", "input"), "steps: no torch: really")) == [
        "steps: no torch: really",
        "input: no torch: really",
    ]
    assert list(signals.explain(("steps",), "broken: pipe")) == ["steps: broken: pipe"]
