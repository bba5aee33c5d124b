"""Record files: written, rotated, cut off, damaged, read back."""

from __future__ import annotations

import gzip
import json
import logging
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.strategies import BATCHES
from tracecore_sidecar.sinks.record_file import (
    FLUSH_INTERVAL_NS,
    MAX_LINE_BYTES,
    RecordWriter,
    read_records,
    segments,
)
from tracecore_train.errors import WireError
from tracecore_train.wire.records import (
    Batch,
    PhaseRecord,
    ProgressRecord,
    Record,
    Source,
    SourceKind,
)

if TYPE_CHECKING:
    from pathlib import Path

SECOND = 1_000_000_000


def source(rank: int = 0) -> Source:
    return Source(
        kind=SourceKind.RANK,
        host="a07",
        boot_id="boot",
        pid=100 + rank,
        job_id="job",
        attempt=0,
        wall_offset_ns=5,
        rank=rank,
        world_size=2,
    )


def progress(number: int, rank: int = 0) -> ProgressRecord:
    return ProgressRecord(
        time_ns=number, rank=rank, pg_name="0", enqueued=number, started=-1, completed=number
    )


def batch(*numbers: int, rank: int = 0) -> Batch:
    return Batch(source=source(rank), records=tuple(progress(n, rank) for n in numbers))


def noise(number: int) -> Batch:
    """A batch of some 2 kB that does not compress."""
    name = random.Random(number).randbytes(1000).hex()
    record = PhaseRecord(time_ns=number, rank=0, name=name, duration_ns=1)
    return Batch(source=source(), records=(record,))


def write_gz(path: Path, *lines: object) -> Path:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()))
    return path


def table_line(**changes: Any) -> dict[str, Any]:
    columns = {
        "time_ns": [1],
        "rank": [0],
        "pg_name": ["0"],
        "enqueued": [1],
        "started": [1],
        "completed": [1],
    }
    described = {
        "kind": "rank",
        "host": "a07",
        "boot_id": "boot",
        "pid": 1,
        "job_id": "job",
        "attempt": 0,
        "wall_offset_ns": 5,
        "rank": 0,
        "local_rank": None,
        "node_rank": None,
        "world_size": None,
    }
    return {"at": 7, "source": described, "kind": "progress", "columns": columns} | changes


def test_batches_and_ticks_come_back_in_order(tmp_path: Path) -> None:
    """What was written is read back: times, sources, records and tick markers."""
    writer = RecordWriter(tmp_path / "records")
    writer.write_batch(batch(1, 2), 10)
    writer.write_tick(11)
    writer.write_batch(batch(3, rank=1), 12)
    writer.write_batch(batch(4), 13)
    writer.write_tick(14)
    writer.close()
    assert list(read_records(tmp_path / "records")) == [
        (10, batch(1, 2)),
        (11, None),
        (12, batch(3, rank=1)),
        (13, batch(4)),
        (14, None),
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(original=BATCHES)
def test_any_batch_comes_back(tmp_path: Path, original: Batch) -> None:
    """Every record of every kind survives; order within a kind is kept."""
    writer = RecordWriter(tmp_path / "any")
    writer.write_batch(original, 1)
    writer.close()
    found: list[Record] = []
    if original.records:
        path = segments(tmp_path / "any")[-1]
        for at, part in read_records(path):
            assert at == 1
            assert part is not None
            assert part.source == original.source
            found += part.records
    kinds = {record.kind for record in original.records}
    assert {kind: [r for r in found if r.kind is kind] for kind in kinds} == {
        kind: [r for r in original.records if r.kind is kind] for kind in kinds
    }
    assert len(found) == len(original.records)


def test_a_source_is_written_out_once_in_a_segment(tmp_path: Path) -> None:
    """After its first line a source is an index."""
    writer = RecordWriter(tmp_path)
    for number in range(5):
        writer.write_batch(batch(number), number)
    writer.close()
    text = gzip.decompress(segments(tmp_path)[0].read_bytes()).decode()
    assert text.count("a07") == 1


def test_segments_rotate_and_can_be_read_alone(tmp_path: Path) -> None:
    """Data beyond the size of a segment go to the next, which introduces its sources itself."""
    writer = RecordWriter(tmp_path, max_bytes=1_000_000)
    for number in range(300):
        writer.write_batch(noise(number), number)
    writer.close()
    paths = segments(tmp_path)
    assert len(paths) > 2
    assert [path.name for path in paths[:2]] == ["000001.jsonl.gz", "000002.jsonl.gz"]
    (first, *_) = read_records(paths[1])
    assert first[1] is not None
    assert [at for at, _ in read_records(tmp_path)] == list(range(300))


def test_the_budget_keeps_the_first_and_the_newest(tmp_path: Path) -> None:
    """Beyond the budget the oldest segments go, except the first, which holds the identities."""
    writer = RecordWriter(tmp_path, max_bytes=64_000)
    for number in range(200):
        writer.write_batch(noise(number), number)
    writer.close()
    times = [at for at, _ in read_records(tmp_path)]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 64_000
    assert times[0] == 0
    assert times[-1] == 199
    assert times == sorted(times)
    assert 50 not in times


def test_a_second_writer_continues(tmp_path: Path) -> None:
    """A sidecar that starts again adds segments and overwrites none."""
    for number in (1, 2):
        writer = RecordWriter(tmp_path)
        writer.write_batch(batch(number), number)
        writer.close()
    assert list(read_records(tmp_path)) == [(1, batch(1)), (2, batch(2))]


def test_data_are_readable_while_ticks_come(tmp_path: Path) -> None:
    """Without closing, a reader sees everything older than the last flush."""
    writer = RecordWriter(tmp_path)
    writer.write_batch(batch(1), 0)
    writer.write_tick(FLUSH_INTERVAL_NS)
    writer.write_batch(batch(2), FLUSH_INTERVAL_NS + 1)
    assert list(read_records(tmp_path)) == [(0, batch(1)), (FLUSH_INTERVAL_NS, None)]
    writer.close()


def test_a_killed_writer_leaves_a_readable_file(tmp_path: Path) -> None:
    """After SIGKILL the segment reads up to the last flush."""
    code = """
import sys, time
from pathlib import Path
from tracecore_sidecar.sinks.record_file import RecordWriter
writer = RecordWriter(Path(sys.argv[1]))
for number in range(50):
    writer.write_tick(number * 100_000_000)
print("written", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    times = [at for at, _ in read_records(tmp_path)]
    assert times == [number * 100_000_000 for number in range(41)]


def test_every_cut_reads_up_to_the_cut(tmp_path: Path) -> None:
    """A segment cut off anywhere gives a prefix of its items and no error."""
    writer = RecordWriter(tmp_path / "whole")
    for number in range(30):
        writer.write_batch(batch(number), number * FLUSH_INTERVAL_NS)
    writer.close()
    raw = segments(tmp_path / "whole")[0].read_bytes()
    whole = list(read_records(tmp_path / "whole"))
    cut_path = tmp_path / "000001.jsonl.gz"
    lengths = set()
    for cut in range(0, len(raw), 7):
        cut_path.write_bytes(raw[:cut])
        items = list(read_records(cut_path))
        assert items == whole[: len(items)]
        lengths.add(len(items))
    assert {0, 10, 20} <= lengths


def test_a_cut_segment_does_not_hide_the_next(tmp_path: Path) -> None:
    """A segment cut off by a crash is followed by those of the next sidecar."""
    writer = RecordWriter(tmp_path)
    writer.write_batch(batch(1), 1)
    writer.close()
    path = segments(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:20])
    writer = RecordWriter(tmp_path)
    writer.write_batch(batch(2), 2)
    writer.close()
    assert list(read_records(tmp_path)) == [(2, batch(2))]


def test_large_batches_are_split_into_lines_that_can_be_read(tmp_path: Path) -> None:
    """A batch whose table would be too long for a line comes back in parts."""
    names = [str(number) * 400 for number in range(10)]
    records = tuple(
        PhaseRecord(time_ns=number, rank=0, name=names[number % 10], duration_ns=1)
        for number in range(60_000)
    )
    writer = RecordWriter(tmp_path)
    writer.write_batch(Batch(source=source(), records=records), 1)
    writer.close()
    parts = [part for _, part in read_records(tmp_path) if part is not None]
    assert len(parts) > 1
    assert [record for part in parts for record in part.records] == list(records)


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[" * 100_000,
        [1],
        {"at": 1},
        {"at": 1, "tick": False},
        {"at": 1.5, "tick": True},
        {"at": 2**63, "tick": True},
        {"at": True, "tick": True},
        table_line(extra=1),
        table_line(source=0),
        table_line(source=-1),
        table_line(source=True),
        table_line(source={"host": "a07"}),
        table_line(source=table_line()["source"] | {"kind": ["rank"]}),
        table_line(source=table_line()["source"] | {"pid": "1"}),
        table_line(source=table_line()["source"] | {"host": "x" * 5000}),
        table_line(kind="nonsense"),
        table_line(columns={}),
        table_line(columns=table_line()["columns"] | {"rank": [0, 1]}),
        table_line(columns=table_line()["columns"] | {"rank": ["0"]}),
    ],
)
def test_hostile_lines_are_named(tmp_path: Path, line: object) -> None:
    """Content no writer makes is refused with file and line; lines before it still come."""
    path = write_gz(tmp_path / "000001.jsonl.gz", {"at": 1, "tick": True}, line)
    reader = read_records(path)
    assert next(reader) == (1, None)
    with pytest.raises(WireError, match=r"000001\.jsonl\.gz:2: "):
        next(reader)


def test_a_file_without_a_last_line_end_is_whole(tmp_path: Path) -> None:
    """The last line of a finished file counts without a line end."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"at":1,"tick":true}'))
    assert list(read_records(path)) == [(1, None)]


def test_a_file_that_is_no_gzip_is_refused(tmp_path: Path) -> None:
    """Other bytes are a WireError that names the file."""
    path = tmp_path / "000001.jsonl.gz"
    path.write_bytes(b'{"at":1,"tick":true}\n')
    with pytest.raises(WireError, match=r"000001\.jsonl\.gz"):
        list(read_records(tmp_path))


def test_garbage_behind_the_end_is_refused(tmp_path: Path) -> None:
    """Bytes after the gzip data are a WireError."""
    path = write_gz(tmp_path / "000001.jsonl.gz", {"at": 1, "tick": True})
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(WireError, match="behind the end"):
        list(read_records(path))


def test_an_endless_line_costs_bounded_memory(tmp_path: Path) -> None:
    """A bomb that inflates to one huge line is refused at the bound of a line."""
    path = tmp_path / "000001.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(MAX_LINE_BYTES // (1 << 20) + 8):
            file.write(b" " * (1 << 20))
    with pytest.raises(WireError, match="a line of more than"):
        list(read_records(path))


def test_a_path_that_does_not_exist_is_an_os_error(tmp_path: Path) -> None:
    """Nothing to open is told apart from nothing inside."""
    with pytest.raises(OSError, match="none"):
        list(read_records(tmp_path / "none"))


def test_a_disk_that_refuses_is_counted_and_retried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be written it is said once; once it can, recording goes on."""
    blocker = tmp_path / "records"
    blocker.write_text("")
    writer = RecordWriter(blocker)
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            writer.write_batch(batch(number), number * SECOND)
    assert writer.num_lost == 5
    assert len(caplog.records) == 1
    blocker.unlink()
    writer.write_batch(batch(7), 60 * SECOND)
    writer.close()
    assert list(read_records(blocker)) == [(60 * SECOND, batch(7))]


def test_a_full_disk_leaves_readable_segments(tmp_path: Path) -> None:
    """After a write that was cut by the disk, what came before it can be read."""
    code = """
import random, resource, signal, sys
from pathlib import Path
from tracecore_sidecar.sinks.record_file import RecordWriter
from tracecore_train.wire.records import Batch, PhaseRecord, Source, SourceKind
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
source = Source(kind=SourceKind.RANK, host="h", boot_id="b", pid=1, job_id="j", attempt=0,
                wall_offset_ns=0)
writer = RecordWriter(Path(sys.argv[1]))
for number in range(60):
    name = random.Random(number).randbytes(1000).hex()
    record = PhaseRecord(time_ns=number, rank=0, name=name, duration_ns=1)
    writer.write_batch(Batch(source=source, records=(record,)), number * 1_000_000_000)
writer.close()
print(writer.num_lost)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert done.stderr.count("cannot record") == 1
    times = [at // SECOND for at, _ in read_records(tmp_path)]
    assert times == sorted(times)
    assert times[:5] == [0, 1, 2, 3, 4]
    assert len(segments(tmp_path)) > 1
