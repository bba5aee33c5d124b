"""The rank a file is of, where only its name tells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracecore_sidecar.offline.recorder_file import MAX_RANK

if TYPE_CHECKING:
    from pathlib import Path

_RANK = re.compile(r"(?<!local)(?<!local[_\-.])rank[_\-.=]?(\d{1,6})(?!\d)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<!\d)(\d{1,6})(?!\d)")
_SUFFIXES = re.compile(r"(\.(gz|json|pickle|pkl|p|pt|bin|dump|trace|txt|log))+\Z", re.IGNORECASE)


def rank_in_name(path: Path) -> int | None:
    """Give the rank that a file name tells: after ``rank``, else its last number."""
    name = _SUFFIXES.sub("", path.name)
    found = _RANK.findall(name) or _NUMBER.findall(name) or _RANK.findall(path.parent.name)
    rank = int(found[-1]) if found else None
    return rank if rank is not None and rank <= MAX_RANK else None
