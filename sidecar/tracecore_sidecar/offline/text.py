"""The answer of ``tracecore diagnose`` for a person: what hung first, then what was read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tracecore_sidecar.detectors.naming import ranks_text
from tracecore_sidecar.render import clean_line, render_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracecore_sidecar.offline.diagnose import Answer

MAX_REFUSED = 20
"""Files that were not read, with a line of their own."""


def answer_text(answer: Answer) -> str:
    """Give the whole answer."""
    return "\n".join(_lines(answer))


def _lines(answer: Answer) -> Iterator[str]:
    places = {told.about for told in answer.told}
    for told in answer.told:
        if len(places) > 1:
            yield clean_line(f"in {told.about}:")
        yield render_text(told.verdict, now_ns=told.now_ns, wall_offset_ns=told.wall_offset_ns)
        yield ""
    if not answer.told:
        has_read = any(item.status == "read" for item in answer.inputs)
        about = "in what was read nobody waits for anybody" if has_read else "nothing was read"
        yield f"no verdict: {about}"
        yield ""
    read = Counter(item.kind for item in answer.inputs if item.status == "read")
    ranks = {item.rank for item in answer.inputs if item.rank is not None}
    kinds = ", ".join(f"{number} x {kind}" for kind, number in sorted(read.items()))
    yield f"read: {kinds or 'nothing'}{f' ({ranks_text(ranks)})' if ranks else ''}"
    refused = [item for item in answer.inputs if item.status == "refused"]
    for item in refused[:MAX_REFUSED]:
        yield clean_line(f"refused: {item.path}: {item.detail}")
    if len(refused) > MAX_REFUSED:
        yield f"refused: {len(refused) - MAX_REFUSED} more"
    num_other = sum(item.status == "not used" for item in answer.inputs)
    if num_other:
        yield f"not used: {num_other} other file{'s' if num_other > 1 else ''}"
    for gap in answer.not_measured:
        yield clean_line(f"not seen: {gap}")
