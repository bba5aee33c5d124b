"""What a bundle keeps of NCCL RAS: the answer as it came, and what stands out in it.

Both are hints. The service has called hung jobs healthy, and no rule of ours is built on it: where
nothing stands out, that is said to mean nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from tracecore_sidecar.sources.flight_recorder import NCCL_HANDLER
from tracecore_sidecar.sources.nccl_ras import is_own_address
from tracecore_sidecar.sources.nccl_ras_report import read_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracecore_sidecar.bundle.case import Case, LocalRank
    from tracecore_sidecar.sources.nccl_ras import RasAnswer

NAME = "nccl_ras"
ABOUT = "NCCL's RAS service, as it answered; a hint: its OK is no sign of health"
WAY = "run `ncclras` on the node while the job lives"
NOT_ALLOWED = (
    "not asked (TRACECORE_NCCL_PULL=never): some releases of NCCL crash when they are; allow it "
    f"with on-suspicion, or {WAY}"
)
NOTHING = (
    "Nothing stands out in it. That does not mean that all is well: the service compares how many "
    "operations members have launched, not whether they complete."
)


class RasFile(NamedTuple):
    """A file of the bundle."""

    text: str
    about: str


def whom_to_ask(case: Case) -> tuple[list[LocalRank], str]:
    """Give the ranks whose processes may be asked, the likeliest to answer first, or why none.

    The permission is that to read NCCL's flight recorder: both ask a thread inside the rank.
    """
    live = [rank for rank in reversed(case.ranks) if rank.pid > 0 and not rank.is_ended]
    asked = [rank for rank in live if NCCL_HANDLER in rank.plan.handlers]
    if asked:
        return asked, ""
    if case.unread:
        return [], NOT_ALLOWED
    left_out = next((rank.plan.left_out for rank in live if rank.plan.left_out), "")
    if left_out:
        return [], f"not asked for the same reason as the flight recorder: {left_out}"
    return [], f"no rank that lives on this node is in a group of NCCL's first backend; {WAY}"


def files_of(answer: RasAnswer, ranks_by_pid: Mapping[int, int]) -> tuple[dict[str, RasFile], str]:
    """Give the files of an answer by name, and why nothing was made of it, where so."""
    suffix = "json" if _is_json(answer.text) else "txt"
    files = {f"{NAME}.{suffix}": RasFile(answer.text, ABOUT)}
    found, why_not = read_answer(answer.text, ranks_by_pid, is_own_address)
    if why_not:
        return files, f"{why_not}; {NAME}.{suffix} holds it"
    told = [f"- {text}" for text in found] or [NOTHING]
    text = "\n".join([f"Answered at {answer.address}. {ABOUT}.", "", *told, ""])
    return {**files, f"{NAME}.findings.txt": RasFile(text, "what stands out in it")}, ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_int=len)
    except (ValueError, RecursionError):
        return False
    return True
