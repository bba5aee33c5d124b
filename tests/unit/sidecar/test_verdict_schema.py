"""docs/verdict.schema.json describes what the sink writes, and nothing more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.verdicts import JOB, SECOND, WALL_OFFSET_NS, fact, hang
from tracecore_sidecar.verdicts import Confidence, Severity, Suspect, SuspectKind, Verdict, to_json

SCHEMA = json.loads(
    (Path(__file__).resolve().parents[3] / "docs" / "verdict.schema.json").read_text()
)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def line_of(verdict: Verdict) -> dict[str, Any]:
    value = to_json(
        verdict,
        JOB,
        incident_id="c0ffee",
        emitted_ns=68 * SECOND,
        wall_offset_ns=WALL_OFFSET_NS,
    )
    parsed: dict[str, Any] = json.loads(json.dumps(value))
    return parsed


def test_the_schema_is_one() -> None:
    """The schema follows JSON Schema 2020-12."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "verdict",
    [
        hang(1),
        hang(1, 3, contradicting=(fact("its input wait is ordinary", rank=None),)),
        hang(cost=None, evidence=(), actions=(), not_measured=()),
        hang(confidence=Confidence.PARTIAL, severity=Severity.INFO),
        hang(suspects=(Suspect(kind=SuspectKind.NODE, host="a07"),)),
    ],
    ids=["full", "two-suspects", "bare", "partial", "node"],
)
def test_verdicts_fit_the_schema(verdict: Verdict) -> None:
    """What to_json gives is valid."""
    VALIDATOR.validate(line_of(verdict))


def test_the_schema_knows_exactly_the_keys_that_are_written() -> None:
    """Every object of a full verdict has the keys the schema names, all required."""
    line = line_of(hang(1))
    definitions = SCHEMA["$defs"]
    for value, described in (
        (line, SCHEMA),
        (line["suspects"][0], definitions["suspect"]),
        (line["evidence"][0], definitions["evidence"]),
        (line["cost"], definitions["cost"]),
        (line["job"], definitions["job"]),
    ):
        assert set(value) == set(described["properties"]) == set(described["required"])
        assert described["additionalProperties"] is False


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("severity", "bad"),
        ("confidence", 0.9),
        ("since", "yesterday"),
        ("suspects", [{"kind": "rank", "rank": 1}]),
        ("pattern", "Hang!"),
        ("mood", "grim"),
    ],
)
def test_other_lines_do_not_fit(key: str, value: object) -> None:
    """A line with a wrong or unknown value is invalid."""
    assert not VALIDATOR.is_valid(line_of(hang(1)) | {key: value})
