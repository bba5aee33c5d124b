"""How signals stand: this node's at the start, everybody's in the summary.

The names are those of ``tracecore_train.wire.signals``. A rank says of itself how its signals
stand; what the sidecar and the launcher give is looked at here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.detectors.naming import ranks_text
from tracecore_sidecar.detectors.unseen import blind_texts, off_names
from tracecore_sidecar.sources.ptrace import ptrace_obstacle
from tracecore_sidecar.sources.stacks import find_py_spy
from tracecore_train.wire.signals import (
    BY_NAME,
    SIGNALS,
    SignalSource,
    measured_among,
    name_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracecore_sidecar.state.view import JobView

MAX_TEXTS = 50
"""Texts about ranks in a summary; ranks that say the same share one."""
UNTRIED = {"nccl_ras": "asked only when a hang is suspected, where TRACECORE_NCCL_PULL allows it"}
"""What nobody knows to work before it is wanted. What came of it then is said there."""
OFF = "off (docs/signals.md says how each is turned on)"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSignals:
    """How each signal of one node stands."""

    measured: tuple[str, ...]
    blind: tuple[str, ...]
    """Each as ``signal: reason``."""
    off: tuple[str, ...]
    """Signals that this version does not read. No alarm about them means nothing."""

    def texts(self) -> tuple[str, ...]:
        """Give what is not seen, for people: a text per blind signal, one for all that are off.

        What is tried only in a hang is left out.
        """
        unread = [f"{', '.join(self.off)}: not read by this version"] if self.off else []
        told = (text for text in self.blind if name_in(text) not in UNTRIED)
        return (*told, *unread)


def of_this_node(*, is_launched: bool) -> NodeSignals:
    """Look. ``is_launched``: a launcher started this sidecar and tells of the workers."""
    blind = []
    if not is_launched:
        blind.append("worker_exits: the job was not started by `tracecore run`")
    if find_py_spy() is None:
        blind.append("stacks: py-spy is not installed")
    elif obstacle := ptrace_obstacle():
        blind.append(f"stacks: {obstacle}")
    blind += [f"{name}: {reason}" for name, reason in UNTRIED.items()]
    ours = [signal for signal in SIGNALS if signal.source is not SignalSource.RANK]
    off = tuple(signal.name for signal in ours if not signal.given_by)
    names = [signal.name for signal in ours]
    return NodeSignals(
        measured=measured_among(names, blind=blind, off=off), blind=tuple(blind), off=off
    )


def of_the_ranks(view: JobView) -> list[str]:
    """Say what was not had of ranks, at most ``MAX_TEXTS`` texts."""
    texts = list(_of_the_ranks(view))
    num_more = len(texts) - MAX_TEXTS
    return texts if num_more <= 0 else [*texts[:MAX_TEXTS], f"signals of ranks: {num_more} more"]


def _of_the_ranks(view: JobView) -> Iterator[str]:
    """Give unread recorders, then blind signals by reason, then what is off."""
    unread = Counter(group.backend for group in view.groups.values() if group.is_blind)
    for backend, count in unread.items():
        reason = f"the recorder of {backend} gave nothing (number of its groups: {count})"
        yield f"collectives.entries: {reason}"
    blind: dict[str, list[int]] = {}
    off: dict[str, list[int]] = {}
    for rank in view.identities:
        for text in blind_texts(view, rank, BY_NAME):
            blind.setdefault(text, []).append(rank)
        if names := ", ".join(off_names(view, rank, BY_NAME)):
            off.setdefault(f"{names}: {OFF}", []).append(rank)
    for texts in (blind, off):
        for text in sorted(texts):
            is_everywhere = len(texts[text]) == len(view.identities)
            yield text if is_everywhere else f"{ranks_text(texts[text])}, {text}"


def standings(view: JobView | None) -> list[dict[str, Any]]:
    """Give how the signals of the ranks stand, ranks that agree together, for summary.json."""
    found: dict[tuple[tuple[str, ...], ...], list[int]] = {}
    for rank, identity in () if view is None else view.identities.items():
        key = (identity.measured, identity.blind, identity.off)
        found.setdefault(key, []).append(rank)
    return [
        {
            "ranks": ranks_text(ranks),
            "measured": list(measured),
            "blind": list(blind),
            "off": list(off),
        }
        for (measured, blind, off), ranks in found.items()
    ]
