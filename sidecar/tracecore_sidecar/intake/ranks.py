"""Which rank foreign telemetry comes from, written on its resource.

A user's own OpenTelemetry SDK rarely says. The rank is taken from ``tracecore.rank``, from
``nv.dl.rank`` (NVIDIA NeMo Lens), or from the process when it is one of the job's. Where it cannot
be told it is not guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracecore_train.wire import attributes as attr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message

    from tracecore_sidecar.otlp_signals import Signal

RANK_NAMES = (attr.RANK, "nv.dl.rank")
WORLD_SIZE_NAMES = (attr.WORLD_SIZE, "nv.dl.world_size")
UNKNOWN = "unknown"
"""In counts by rank: nobody can tell."""
MAX_RANK = 1 << 24
_TEXT = "string_value"
_INTEGER = "int_value"


@dataclass(slots=True)
class Tagged:
    """What :func:`tag_ranks` did to a request."""

    is_modified: bool = False
    num_items: int = 0
    num_own: int = 0
    """Of those, from resources that say they are ours (a rank's standard metrics)."""
    by_rank: dict[str, int] = field(default_factory=dict)
    """The other items per rank, as text, or :data:`UNKNOWN`."""


def tag_ranks(
    request: Message,
    signal: Signal,
    *,
    job_id: str,
    rank_of: Callable[[str | None, int], int | None],
) -> Tagged:
    """Write rank and job on every resource whose rank can be told; count all items.

    ``rank_of`` gives the rank of a process by host name (None: not said) and pid.
    """
    tagged = Tagged()
    for group in signal.resource_groups(request):
        resource = group.resource
        values = {item.key: item.value for item in resource.attributes}
        rank = _rank(values, rank_of)
        if rank is not None:
            tagged.is_modified |= _set_integer(resource, values, attr.RANK, rank)
            world_size = _first_integer(values, WORLD_SIZE_NAMES)
            if world_size is not None:
                tagged.is_modified |= _set_integer(resource, values, attr.WORLD_SIZE, world_size)
            if attr.JOB_ID not in values:
                resource.attributes.add(key=attr.JOB_ID).value.string_value = job_id
                tagged.is_modified = True
        num_items = signal.num_items(group)
        tagged.num_items += num_items
        if attr.SOURCE in values:
            tagged.num_own += num_items
            continue
        name = UNKNOWN if rank is None else str(rank)
        tagged.by_rank[name] = tagged.by_rank.get(name, 0) + num_items
    return tagged


def _rank(
    values: Mapping[str, Any], rank_of: Callable[[str | None, int], int | None]
) -> int | None:
    rank = _first_integer(values, RANK_NAMES)
    if rank is not None:
        return rank
    pid = _integer(values.get(attr.PROCESS_PID))
    if pid is None:
        return None
    host = values.get(attr.HOST_NAME)
    return rank_of(None if host is None else host.string_value or None, pid)


def _first_integer(values: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    found = (_integer(values.get(name)) for name in names)
    return next((number for number in found if number is not None), None)


def _integer(value: Any) -> int | None:
    """Read an integer, also as text: variables of the environment hold nothing else."""
    form = None if value is None else value.WhichOneof("value")
    if form == _INTEGER:
        number: int = value.int_value
    elif form == _TEXT and value.string_value.isdecimal() and len(value.string_value) < 10:
        number = int(value.string_value)
    else:
        return None
    return number if 0 <= number <= MAX_RANK else None


def _set_integer(resource: Any, values: Mapping[str, Any], name: str, number: int) -> bool:
    value = values.get(name)
    if value is None:
        resource.attributes.add(key=name).value.int_value = number
        return True
    if value.WhichOneof("value") == _INTEGER and value.int_value == number:
        return False
    value.int_value = number
    return True
