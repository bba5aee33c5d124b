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


REASONS = {
    "empty_3": (b"", "empty: its writer was ended before it wrote"),
    "cut_3": (b"\x80\x02}q", "ends in the middle; copy it again once it is written"),
    "cut_4.json": (b'{"version": "2.9", "ent', "damaged JSON of 23 bytes; copy it again"),
    "zip_5": (b"PK\x03\x04", "unpack it if it holds dumps"),
    "other_6.json": (b'{"lr": 1}', "no flight recorder dump: it has no version and entries"),
    "noise_7": (b"\x00\x01\x02", "neither a dump, nor our output, nor a log"),
}


def test_each_file_that_is_not_read_is_named_with_the_way_out(tmp_path: Path) -> None:
    """Nothing read is not taken for nothing found."""
    for name, (raw, _) in REASONS.items():
        (tmp_path / name).write_bytes(raw)
    done = CliRunner().invoke(cli, ["diagnose", *map(str, sorted(tmp_path.iterdir()))])
    assert done.exit_code == 1
    assert done.stdout.startswith("no verdict: nothing was read")
    for name, (_, reason) in REASONS.items():
        (line,) = [line for line in done.stdout.splitlines() if f"/{name}: " in line]
        assert reason in line


def test_json_keeps_its_form_without_any_answer(tmp_path: Path) -> None:
    """The same three keys, and of every file the same five."""
    (tmp_path / "x_0").write_bytes(b"PK\x03\x04")
    done = CliRunner().invoke(cli, ["diagnose", str(tmp_path), "--json"])
    answer = json.loads(done.stdout)
    assert set(answer) == {"verdicts", "inputs", "not_measured"}
    assert answer["verdicts"] == []
    assert set(answer["inputs"][0]) == {"path", "kind", "status", "detail", "rank"}


def test_help_has_an_example() -> None:
    """A line to copy."""
    done = CliRunner().invoke(cli, ["diagnose", "--help"])
    assert "tracecore diagnose /tmp/nccl_trace_rank_*" in done.stdout
