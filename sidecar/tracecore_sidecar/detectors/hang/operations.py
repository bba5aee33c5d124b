"""What the names of operations mean: who must take part, and what must be equal."""

from __future__ import annotations

import json
from functools import cache

from tracecore_sidecar.state.view import OTHER_OP

_SAME_SIZE = ("all_reduce", "allreduce", "broadcast", "reduce", "reduce_scatter", "barrier")
_SAME_SIZE_TOO = ("_all_gather_base", "all_gather_into_tensor", "_reduce_scatter_base")
_ROOTED = ("broadcast", "reduce", "gather", "scatter")
_DEVICE_BACKENDS = ("nccl", "rccl", "xccl", "hccl", "mccl")
MAX_PARSED = 2_000
"""Characters of a list of sizes that is read as numbers."""


def name_of(signature: str) -> str:
    """Give the operation of a signature, without sizes and types; ``send`` for ``send 0->3``."""
    return signature.partition(" ")[0]


def plain_name(signature: str) -> str:
    """Give the operation by the name users know: ``all_gather`` for ``_all_gather_base``."""
    return name_of(signature).removesuffix("_base").lstrip("_")


def tells_call(signature: str) -> bool:
    """Say whether it tells what was called; several operations issued as one are ``coalesced``."""
    return signature != OTHER_OP and name_of(signature) != "coalesced"


def is_point(signature: str) -> bool:
    """Say whether it is a send or a recv."""
    return name_of(signature) in {"send", "recv"}


@cache
def needs_everybody(signature: str) -> bool:
    """Say whether no member can finish it before all have entered it."""
    name = plain_name(signature)
    if name in _ROOTED or is_point(signature) or signature == OTHER_OP:
        return False
    return name.startswith(("all_", "allreduce", "allgather", "alltoall", "reduce_scatter", "bar"))


def needs_same_sizes(signature: str) -> bool:
    """Say whether every member must bring the same sizes and types."""
    name = name_of(signature)
    return name in _SAME_SIZE_TOO or plain_name(signature) in _SAME_SIZE


def is_device_backend(backend: str) -> bool:
    """Say whether the backend runs on a device: what it calls completed has succeeded."""
    return any(name in backend.lower() for name in _DEVICE_BACKENDS)


def splits(signature: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Give what an all-to-all sends to and takes from each member, in elements, where told."""
    told = signature.partition(" ")[2]
    sizes, arrow, received = told.partition(" -> ")
    if not arrow:
        return None
    sent, taken = _elements(sizes), _elements(received)
    return None if sent is None or taken is None else (sent, taken)


def _elements(text: str) -> tuple[int, ...] | None:
    """Read ``[[4, 2], [8]] ['Float']`` as ``(8, 8)``."""
    end = text.rfind("]]") + 2
    if end < 2 or end > MAX_PARSED:
        return None
    try:
        return tuple(_product(shape) for shape in json.loads(text[:end]))
    except (ValueError, TypeError, RecursionError):
        return None


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        if type(size) is not int:
            raise TypeError
        product *= size
    return product
