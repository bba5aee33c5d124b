"""The manifest: what a bundle is about, what is in it, and what could not be had.

``docs/bundle.md`` describes the fields; :data:`SCHEMA_VERSION` rises when one changes its meaning.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.verdicts import rfc3339, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracecore_sidecar.bundle.case import Case
    from tracecore_sidecar.bundle.folder import BundleFile

KIND = "tracecore bundle"
SCHEMA_VERSION = 1
REDACTED = (
    "command lines of all processes",
    "environment variables other than the listed ones",
    "local variables and arguments in stacks",
)
"""What is never taken into a bundle."""


def manifest(
    case: Case,
    *,
    files: Sequence[BundleFile],
    missing: Sequence[Mapping[str, str]],
    node: Mapping[str, Any],
    now_ns: int,
    wall_offset_ns: int,
) -> dict[str, Any]:
    """Give the manifest as plain values."""
    wall_ns = now_ns + wall_offset_ns
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "incident_id": case.incident_id,
        "created_at": rfc3339(wall_ns),
        "created_at_ns": wall_ns,
        "wall_offset_ns": wall_offset_ns,
        "verdict": to_json(
            case.verdict,
            case.job,
            incident_id=case.incident_id,
            emitted_ns=case.opened_ns,
            wall_offset_ns=wall_offset_ns,
        ),
        "ranks": [
            {
                "rank": rank.rank,
                "pid": rank.pid,
                "start_ticks": rank.start_ticks,
                "role": rank.role.value,
                "is_ended": rank.is_ended,
            }
            for rank in case.ranks
        ],
        "groups": [
            {
                "pg_name": group.pg_name,
                "pg_desc": group.pg_desc,
                "backend": group.backend,
                "ranks": list(group.members),
            }
            for group in case.groups
        ],
        "node": dict(node),
        "versions": dict(case.versions),
        "files": [asdict(file) for file in files],
        "missing": [dict(item) for item in missing],
        "redacted": list(REDACTED),
    }
