"""The command: one JSON object, or text with the sentence first."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
from click.testing import CliRunner

from tracecore_sidecar.cli import cli

ROOT = Path(__file__).resolve().parents[4]
TRACES = ROOT / "tests" / "data" / "fr_traces" / "lock_gil_1st"
SCHEMA = json.loads((ROOT / "docs" / "verdict.schema.json").read_text())


def test_json_has_verdicts_inputs_and_gaps() -> None:
    """Verdicts are of the documented form, every file is listed."""
    done = CliRunner().invoke(cli, ["diagnose", str(TRACES), "--json"])
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    assert set(answer) == {"verdicts", "inputs", "not_measured"}
    for verdict in answer["verdicts"]:
        jsonschema.validate(verdict, SCHEMA)
    assert len(answer["inputs"]) == len(list(TRACES.iterdir()))
    assert {s["rank"] for v in answer["verdicts"] for s in v["suspects"]} == {9, 14}


def test_text_begins_with_the_sentence() -> None:
    """First what hung, then why, then what to do, then what was read."""
    done = CliRunner().invoke(cli, ["diagnose", str(TRACES)])
    lines = done.stdout.splitlines()
    assert lines[0].startswith("HANG  ranks 9, 14 never joined all_to_all #45265")
    order = [next(i for i, line in enumerate(lines) if line.startswith(w)) for w in ("Why", "Next")]
    assert order == sorted(order)
    assert any(line.startswith("read: 16 x flight recorder dump (ranks 0-15)") for line in lines)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    """Exit code 1, and the reason is printed."""
    (tmp_path / "x_0").write_bytes(b"PK\x03\x04")
    done = CliRunner().invoke(cli, ["diagnose", str(tmp_path)])
    assert done.exit_code == 1
    assert "refused:" in done.stdout
    assert "zip" in done.stdout
