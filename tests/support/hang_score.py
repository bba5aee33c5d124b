"""Judges simulated dumps and compares the answer with the truth."""

from __future__ import annotations

import pickle
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracecore_sidecar.offline.diagnose import diagnose_paths

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.support.hang_cases import Case


@dataclass(frozen=True, slots=True)
class Result:
    """What came out for one case."""

    case: Case
    classes: tuple[str, ...]
    suspects: frozenset[int]

    @property
    def is_exact(self) -> bool:
        """Exactly the ranks at fault were named."""
        return self.suspects == self.case.suspects

    @property
    def is_allowed(self) -> bool:
        """Exact, or an answer that the evidence does not let tell apart."""
        return self.is_exact or self.suspects in self.case.may_name

    @property
    def has_innocent(self) -> bool:
        """A rank was named that is at no fault."""
        return bool(self.suspects - self.case.suspects)

    @property
    def is_class(self) -> bool:
        """The class is right, and is the only one."""
        return self.classes == ((self.case.class_,) if self.case.class_ else ())


def judge(case: Case, directory: Path, *, without: int | None = None) -> Result:
    """Write the dumps of a case and diagnose them."""
    for old in directory.iterdir():
        old.unlink()
    for rank in range(len(case.job.ranks)):
        if rank != without:
            dump = pickle.dumps(case.job.dump(rank, **case.options), protocol=2)
            (directory / f"trace_{rank}").write_bytes(dump)
    answer = diagnose_paths([directory])
    hangs = [told.json for told in answer.told]
    return Result(
        case=case,
        classes=tuple(sorted({verdict["class"] for verdict in hangs})),
        suspects=frozenset(s["rank"] for verdict in hangs for s in verdict["suspects"]),
    )


def table(results: Iterable[Result]) -> str:
    """Give a line for each class: cases, exact sets, classes, innocents; then the confusion."""
    by_class: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_class[result.case.class_ or "(nothing)"].append(result)
    lines = ["| class | cases | exact set | exact or undecidable | class right | innocent named |"]
    lines.append("|---|---|---|---|---|---|")
    for name, found in sorted(by_class.items()):
        counts = Counter[str]()
        for result in found:
            counts["exact"] += result.is_exact
            counts["allowed"] += result.is_allowed
            counts["class"] += result.is_class
            counts["innocent"] += result.has_innocent
        cells = [name, len(found), *(counts[k] for k in ("exact", "allowed", "class", "innocent"))]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
