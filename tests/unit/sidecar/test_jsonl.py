"""The JSON-lines sink."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.support.verdicts import JOB, SECOND, WALL_OFFSET_NS, event_of, fact, hang
from tracecore_sidecar.sinks.jsonl import JsonlSink, LineFile
from tracecore_sidecar.verdicts import to_json

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def sink_in(directory: Path) -> JsonlSink:
    return JsonlSink(directory, wall_offset_ns=WALL_OFFSET_NS)


def lines_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_healthy_job_leaves_empty_files(tmp_path: Path) -> None:
    """Both files exist from the start, also in a directory that did not."""
    sink_in(tmp_path / "new" / "0").close()
    assert lines_of(tmp_path / "new" / "0" / "verdicts.jsonl") == []
    assert lines_of(tmp_path / "new" / "0" / "incidents.jsonl") == []


def test_a_verdict_line_is_what_to_json_gives(tmp_path: Path) -> None:
    """verdicts.jsonl holds to_json and nothing else."""
    sink = sink_in(tmp_path)
    sink.on_event(event_of(hang(1)), JOB)
    sink.close()
    expected = to_json(
        hang(1), JOB, incident_id="c0ffee", emitted_ns=68 * SECOND, wall_offset_ns=WALL_OFFSET_NS
    )
    assert lines_of(tmp_path / "verdicts.jsonl") == [expected]


def test_closing_is_an_incident_line_only(tmp_path: Path) -> None:
    """Every change gives an incident line; opened and updated give a verdict line."""
    sink = sink_in(tmp_path)
    sink.on_event(event_of(hang()), JOB)
    sink.on_event(event_of(hang(1), "updated", now_ns=69 * SECOND), JOB)
    sink.on_event(event_of(hang(1), "closed", now_ns=90 * SECOND), JOB)
    sink.close()
    assert len(lines_of(tmp_path / "verdicts.jsonl")) == 2
    changes = [line["change"] for line in lines_of(tmp_path / "incidents.jsonl")]
    assert changes == ["opened", "updated", "closed"]


def test_an_incident_line_says_when_and_whom(tmp_path: Path) -> None:
    """An incident line has wall-clock times, the suspects and how long the trouble lasted."""
    sink = sink_in(tmp_path)
    sink.on_event(event_of(hang(1), "closed", now_ns=90 * SECOND), JOB)
    sink.close()
    (line,) = lines_of(tmp_path / "incidents.jsonl")
    assert line == {
        "incident_id": "c0ffee",
        "change": "closed",
        "time": "2026-11-18T11:08:10.000Z",
        "time_ns": WALL_OFFSET_NS + 90 * SECOND,
        "opened_at": "2026-11-18T11:07:48.000Z",
        "pattern": "hang",
        "class": "never_entered",
        "suspects": [
            {
                "kind": "rank",
                "rank": 1,
                "local_rank": 1,
                "host": "a07",
                "pid": 4121,
                "gpu_uuid": "GPU-5f1c77d2-1",
            }
        ],
        "summary": "rank 1 never joined all_reduce #482 of default_pg",
        "duration_s": 30.0,
    }


def test_evidence_of_any_type_is_written(tmp_path: Path) -> None:
    """numpy values, NaN, sets and objects become JSON that any reader takes."""
    sink = sink_in(tmp_path)
    data = {
        "count": np.int64(3),
        "late": np.array([1.5, float("nan")]),
        "inf": float("inf"),
        "ranks": (1, 2),
        "where": os,
    }
    sink.on_event(event_of(hang(1, evidence=(fact("odd", **data),))), JOB)
    sink.close()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "verdicts.jsonl").read_text()
    written = json.loads(text, parse_constant=refuse)["evidence"][0]["data"]
    assert written["count"] == 3
    assert written["late"] == [1.5, None]
    assert written["inf"] is None
    assert written["ranks"] == [1, 2]
    assert isinstance(written["where"], str)


def test_a_torn_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    """What an interrupted writer left is closed off before the next line."""
    (tmp_path / "incidents.jsonl").write_text('{"incident_id": "tor')
    sink = sink_in(tmp_path)
    sink.on_event(event_of(hang(1)), JOB)
    sink.close()
    lines = (tmp_path / "incidents.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1])["incident_id"] == "c0ffee"


def test_a_directory_that_cannot_be_had_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no file can be made, lines are counted, and it is said once per file."""
    (tmp_path / "out").write_text("a file, not a directory")
    with caplog.at_level(logging.WARNING):
        file = LineFile(tmp_path / "out" / "verdicts.jsonl")
        for _ in range(5):
            file.append({"a": 1})
        file.close()
    assert file.num_lost == 5
    assert len(caplog.records) <= 2
    assert "verdicts.jsonl" in caplog.text


def test_a_disk_that_comes_back_is_used_again(tmp_path: Path) -> None:
    """Once the directory can be made, lines are written."""
    blocker = tmp_path / "out"
    blocker.write_text("")
    file = LineFile(blocker / "verdicts.jsonl")
    file.append({"a": 1})
    blocker.unlink()
    file.append({"a": 2})
    file.close()
    assert lines_of(blocker / "verdicts.jsonl") == [{"a": 2}]
    assert file.num_lost == 1


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A line that does not fit leaves nothing of itself behind and is counted."""
    code = """
import resource, signal, sys
from pathlib import Path
from tracecore_sidecar.sinks.jsonl import LineFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
file = LineFile(Path(sys.argv[1]))
for number in range(100):
    file.append({"number": number, "text": "x" * 40})
print(file.num_lost)
"""
    path = tmp_path / "verdicts.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    written = lines_of(path)
    assert 0 < len(written) < 100
    assert [line["number"] for line in written] == list(range(len(written)))
    assert int(done.stdout) == 100 - len(written)
    assert done.stderr.count("cannot write") == 1
