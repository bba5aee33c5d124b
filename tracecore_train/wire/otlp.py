"""Batches of records to OTLP log requests and back.

A batch is one ``ResourceLogs``: the source is the resource, each table is one log record with
``EventName`` ``tracecore.<kind>`` and a key-value body: the names of the required integer columns,
their values as little-endian int64 bytes, one column after the other (about 5 µs per 1,000 rows
against milliseconds for one attribute each), and all other columns as one JSON object. Any OTLP
backend can store it; only we read it.

Importing this module loads protobuf (about 31 ms): ranks do so in the export thread only.
"""

from __future__ import annotations

import json
import sys
import uuid
from array import array
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import SEVERITY_NUMBER_INFO, LogRecord
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tracecore_train.errors import WireError
from tracecore_train.wire import attributes as attr
from tracecore_train.wire.records import (
    SCHEMA_VERSION,
    Batch,
    Record,
    RecordKind,
    Source,
    SourceKind,
)
from tracecore_train.wire.tables import MAX_ROWS, Column, Table, columns_of, from_table, to_tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SCOPE_NAME = "tracecore_train"
_SERVICE_NAMESPACE = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
"""Namespace that OpenTelemetry's semantic conventions give for ``service.instance.id``."""
MAX_COLUMNS = 256
"""Columns of a table; the widest kind has some 30."""
_MAX_NAME = 512
"""Characters of a job id or host name."""
_MAX_KNOWN_RESOURCE = 4_096
"""Bytes of a resource that is remembered; a rank's has some 400."""
_dumps = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


@dataclass(frozen=True, slots=True)
class DecodedLogs:
    """What a log request held."""

    batches: tuple[Batch, ...]
    num_foreign: int
    """Log records that are not ours (a user's own telemetry)."""
    num_rejected: int
    """Log records of ours that were malformed."""
    reason: str
    """Why the first of them was rejected; empty when none was."""


def encode_logs(batch: Batch) -> bytes:
    """Serialise a batch as an ``ExportLogsServiceRequest``."""
    request = ExportLogsServiceRequest()
    resource_logs = request.resource_logs.add()
    resource_logs.resource.CopyFrom(resource_of(batch.source))
    scope_logs = resource_logs.scope_logs.add()
    scope_logs.scope.name = SCOPE_NAME
    for table in to_tables(batch.records):
        _write_log(scope_logs.log_records.add(), table, batch.source.wall_offset_ns)
    return request.SerializeToString()


def decode_logs(raw: bytes) -> list[Batch]:
    """Read an ``ExportLogsServiceRequest``; raise :class:`WireError` at anything malformed."""
    decoded = decode_logs_partially(raw)
    if decoded.num_rejected:
        raise WireError(decoded.reason)
    return list(decoded.batches)


def decode_logs_partially(raw: bytes) -> DecodedLogs:
    """Read a serialised ``ExportLogsServiceRequest``; see :func:`decode_log_request`.

    Raises :class:`WireError` only when the bytes are no such request at all.
    """
    request = ExportLogsServiceRequest()
    try:
        request.ParseFromString(raw)
    except DecodeError as error:
        raise WireError(f"not an ExportLogsServiceRequest: {error}") from None
    return decode_log_request(request)


def is_table(log: LogRecord) -> bool:
    """Say whether a log record is one of our tables, and not somebody's telemetry."""
    name = log.event_name
    return name.startswith(attr.EVENT_PREFIX) and name != attr.VERDICT_EVENT


def decode_log_request(request: ExportLogsServiceRequest) -> DecodedLogs:
    """Read the tables of a log request, keeping what is good and counting what is not."""
    batches: list[Batch] = []
    num_foreign, num_rejected, reason = 0, 0, ""
    for resource_logs in request.resource_logs:
        logs = [log for scope in resource_logs.scope_logs for log in scope.log_records]
        ours = [log for log in logs if is_table(log)]
        num_foreign += len(logs) - len(ours)
        if not ours:
            continue
        try:
            source = _source(resource_logs.resource)
        except WireError as error:
            num_rejected += len(ours)
            reason = reason or str(error)
            continue
        records: list[Record] = []
        for log in ours:
            found, error_text = _records_or_reason(log)
            records.extend(found)
            num_rejected += bool(error_text)
            reason = reason or error_text
        batches.append(Batch(source=source, records=tuple(records)))
    return DecodedLogs(tuple(batches), num_foreign, num_rejected, reason)


def service_instance_id(source: Source) -> str:
    """Give the stable ``service.instance.id`` of a source."""
    place = source.host if source.rank is None else source.rank
    return str(uuid.uuid5(_SERVICE_NAMESPACE, f"{source.job_id}/{source.kind.value}/{place}"))


@lru_cache(maxsize=16)
def resource_of(source: Source) -> Resource:
    """Give a source as an OTLP resource. Shared between calls: copy it, do not change it."""
    values: dict[str, str | int | None] = {
        attr.SERVICE_NAME: SCOPE_NAME,
        attr.SERVICE_INSTANCE_ID: service_instance_id(source),
        attr.HOST_NAME: source.host,
        attr.PROCESS_PID: source.pid,
        attr.SOURCE: source.kind.value,
        attr.SCHEMA_VERSION: SCHEMA_VERSION,
        attr.JOB_ID: source.job_id,
        attr.JOB_ATTEMPT: source.attempt,
        attr.BOOT_ID: source.boot_id,
        attr.WALL_OFFSET: source.wall_offset_ns,
        attr.RANK: source.rank,
        attr.LOCAL_RANK: source.local_rank,
        attr.NODE_RANK: source.node_rank,
        attr.WORLD_SIZE: source.world_size,
    }
    return Resource(attributes=key_values({k: v for k, v in values.items() if v is not None}))


def key_values(values: Mapping[str, str | int]) -> list[KeyValue]:
    """Give attributes as OTLP key-value pairs."""
    return [
        KeyValue(
            key=key,
            value=AnyValue(int_value=value)
            if isinstance(value, int)
            else AnyValue(string_value=value),
        )
        for key, value in values.items()
    ]


def _source(resource: Resource) -> Source:
    """Read a resource; a rank says the same in every request, so the last ones are remembered."""
    raw = resource.SerializeToString()
    return _known_source(raw) if len(raw) <= _MAX_KNOWN_RESOURCE else _read_source(resource)


@lru_cache(maxsize=256)
def _known_source(raw: bytes) -> Source:
    return _read_source(Resource.FromString(raw))


def _read_source(resource: Resource) -> Source:
    values = {item.key: item.value for item in resource.attributes}

    def text(name: str) -> str:
        if name not in values or values[name].WhichOneof("value") != "string_value":
            raise WireError(f"resource attribute {name} is missing or not a string")
        if len(values[name].string_value) > _MAX_NAME:
            raise WireError(f"resource attribute {name} is longer than {_MAX_NAME} characters")
        return values[name].string_value

    def number(name: str) -> int:
        if name not in values or values[name].WhichOneof("value") != "int_value":
            raise WireError(f"resource attribute {name} is missing or not an integer")
        return values[name].int_value

    def optional(name: str) -> int | None:
        return number(name) if name in values else None

    version = number(attr.SCHEMA_VERSION)
    if version > SCHEMA_VERSION:
        raise WireError(
            f"records of schema version {version}; this sidecar knows {SCHEMA_VERSION}: upgrade it"
        )
    try:
        kind = SourceKind(text(attr.SOURCE))
    except ValueError:
        raise WireError(f"unknown source {text(attr.SOURCE)[:60]!r}") from None
    return Source(
        kind=kind,
        host=text(attr.HOST_NAME),
        boot_id=text(attr.BOOT_ID),
        pid=number(attr.PROCESS_PID),
        job_id=text(attr.JOB_ID),
        attempt=number(attr.JOB_ATTEMPT),
        wall_offset_ns=number(attr.WALL_OFFSET),
        rank=optional(attr.RANK),
        local_rank=optional(attr.LOCAL_RANK),
        node_rank=optional(attr.NODE_RANK),
        world_size=optional(attr.WORLD_SIZE),
    )


def _write_log(log: LogRecord, table: Table, wall_offset_ns: int) -> None:
    columns = table.columns
    packed, names, others = _layout(table.kind)
    log.event_name = attr.EVENT_PREFIX + table.kind.value
    log.severity_number = SEVERITY_NUMBER_INFO
    log.time_unix_nano = max(0, columns["time_ns"][-1] + wall_offset_ns)
    log.attributes.add(key=attr.NUM_ROWS).value.int_value = table.num_rows
    body = log.body.kvlist_value.values
    body.add(key=attr.INT_COLUMNS).value.string_value = names
    ints = chain.from_iterable(map(columns.__getitem__, packed))
    body.add(key=attr.INTS).value.bytes_value = _pack(ints)
    if others:
        text = _dumps({name: columns[name] for name in others})
        body.add(key=attr.JSON_COLUMNS).value.string_value = text


@cache
def _layout(kind: RecordKind) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Give the columns that travel packed, their names as they travel, and the other columns."""
    packed = tuple(column.name for column in columns_of(kind) if _is_packed(column))
    others = tuple(column.name for column in columns_of(kind) if not _is_packed(column))
    return packed, ",".join(packed), others


def _records_or_reason(log: LogRecord) -> tuple[list[Record], str]:
    try:
        return _records(log), ""
    except WireError as error:
        return [], str(error)


def _records(log: LogRecord) -> list[Record]:
    kind = log.event_name.removeprefix(attr.EVENT_PREFIX)
    if log.body.WhichOneof("value") != "kvlist_value":
        raise WireError(f"{kind[:60]}: body is not a key-value list")
    body = {item.key: item.value for item in log.body.kvlist_value.values}
    if attr.INT_COLUMNS not in body or attr.INTS not in body:
        raise WireError(f"{kind[:60]}: body without {attr.INT_COLUMNS} and {attr.INTS}")
    names = body[attr.INT_COLUMNS].string_value.split(",", MAX_COLUMNS)
    columns: dict[str, Any] = _unpack(kind, names, body[attr.INTS].bytes_value)
    if attr.JSON_COLUMNS in body:
        columns |= _loads(kind, body[attr.JSON_COLUMNS].string_value)
    return from_table(kind, columns)


def _is_packed(column: Column) -> bool:
    return column.item is int and not column.is_optional and not column.is_tuple


def _pack(values: Iterable[int]) -> bytes:
    packed = array("q", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpack(kind: str, names: list[str], raw: bytes) -> dict[str, Any]:
    """Cut packed integers into columns of equal length."""
    num_rows, rest = divmod(len(raw), 8 * len(names))
    if rest or num_rows > MAX_ROWS or len(names) > MAX_COLUMNS:
        raise WireError(f"{kind[:60]}: {len(raw)} bytes are not {len(names)} columns of integers")
    packed = array("q")
    packed.frombytes(raw)
    if sys.byteorder == "big":
        packed.byteswap()
    values = packed.tolist()
    return {name: values[i * num_rows : (i + 1) * num_rows] for i, name in enumerate(names)}


def _loads(kind: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            # Half a pair, as in names of files that are not UTF-8, could not be written later on.
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"{kind[:60]}: columns are not JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise WireError(f"{kind[:60]}: columns are JSON {type(value).__name__}, not an object")
    return value
