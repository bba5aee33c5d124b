"""Sources as OTLP resources: read once, and never taken for another."""

from __future__ import annotations

from dataclasses import replace

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tracecore_train.wire.otlp import decode_logs, encode_logs
from tracecore_train.wire.records import Batch, PhaseRecord, ProgressRecord, Source, SourceKind

SOURCE = Source(
    kind=SourceKind.RANK,
    host="a07",
    boot_id="boot",
    pid=100,
    job_id="job",
    attempt=0,
    wall_offset_ns=5,
    rank=0,
    world_size=2,
)
RECORD = ProgressRecord(time_ns=1, rank=0, pg_name="0", enqueued=1, started=-1, completed=1)


def test_a_source_that_changed_is_read_anew() -> None:
    """A resource is remembered by all it says."""
    sources = [SOURCE, replace(SOURCE, wall_offset_ns=6), replace(SOURCE, attempt=1), SOURCE]
    batches = [Batch(source=source, records=(RECORD,)) for source in sources]
    assert [decode_logs(encode_logs(batch))[0] for batch in batches] == batches


def test_a_resource_too_long_to_remember_is_read() -> None:
    """What a collector added to a resource changes nothing."""
    batch = Batch(source=SOURCE, records=(RECORD,))
    request = ExportLogsServiceRequest.FromString(encode_logs(batch))
    added = request.resource_logs[0].resource.attributes.add(key="note")
    added.value.string_value = "x" * 100_000
    assert decode_logs(request.SerializeToString()) == [batch]


def test_half_a_surrogate_pair_becomes_text_that_can_be_written() -> None:
    """A file name that is not UTF-8 comes through readable, a whole pair as it was."""
    record = PhaseRecord(time_ns=1, rank=0, name="read \udcff.bin \U0001f600", duration_ns=5)
    (batch,) = decode_logs(encode_logs(Batch(source=SOURCE, records=(record,))))
    assert batch.records == (replace(record, name="read ?.bin \U0001f600"),)
