"""Which of several verdicts tells the story, where they are about the same trouble.

A hang is judged from all ranks at once, with the pause each of them is in: what a long pause
could add is one more line, and two lines about one trouble can disagree. While a hang stands, the
long pause is not told beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracecore_sidecar.verdicts import Verdict

TOLD_BY = {"long_pause": "hang"}
"""Pattern that is not told while a verdict of the other one holds."""


def leading(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Leave out verdicts whose story another one tells."""
    found = tuple(verdicts)
    patterns = {verdict.pattern for verdict in found}
    return tuple(v for v in found if TOLD_BY.get(v.pattern) not in patterns)
