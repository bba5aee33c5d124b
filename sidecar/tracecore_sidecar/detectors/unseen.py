"""Which signals of ranks a verdict, or the summary of a run, had to do without.

A rank tells which of its signals are blind and which are off. What matters to one judgement is
named; a signal of the device does not concern a rank that trains on the processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.naming import ranks_text
from tracecore_train.wire.signals import BY_NAME, name_in

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from tracecore_sidecar.state.view import JobView

MAX_TEXTS = 16
"""Texts of one verdict; one is a signal and a reason, for all ranks that share it."""


def unseen_texts(view: JobView, ranks: Iterable[int], wanted: Collection[str]) -> list[str]:
    """List what of ``wanted`` these ranks do not give, each as ``rank 1, signal: reason``."""
    found: dict[str, list[int]] = {}
    for rank in ranks:
        for text in blind_texts(view, rank, wanted):
            found.setdefault(text, []).append(rank)
        for name in off_names(view, rank, wanted):
            found.setdefault(f"{name}: off", []).append(rank)
    return [f"{ranks_text(ranks)}, {text}" for text, ranks in found.items()][:MAX_TEXTS]


def blind_texts(view: JobView, rank: int, wanted: Collection[str]) -> Iterator[str]:
    """Give what of ``wanted`` a rank cannot give, and what it says of things unknown here."""
    for text in view.blind.get(rank, ()):
        name = name_in(text)
        if (name in wanted or name not in BY_NAME) and _concerns(view, rank, name):
            yield text


def off_names(view: JobView, rank: int, wanted: Collection[str]) -> Iterator[str]:
    """Give what of ``wanted`` is off in a rank."""
    identity = view.identities.get(rank)
    for name in () if identity is None else identity.off:
        if name in wanted and _concerns(view, rank, name):
            yield name


def _concerns(view: JobView, rank: int, name: str) -> bool:
    known, identity = BY_NAME.get(name), view.identities.get(rank)
    is_of_device = known is not None and known.is_of_device
    return not is_of_device or identity is None or identity.device != "cpu"
