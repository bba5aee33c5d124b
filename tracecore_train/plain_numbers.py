"""Which of a user's values are plain numbers, told without touching what may be on a device.

A tensor, also one on the CPU, is refused: reading one that is on a device waits for the device,
and code that is right on one machine would stall another. ``tensor.item()`` is the user's own wait.
"""

from __future__ import annotations

import numbers

WAY_OUT = "give a plain number"
TENSOR_WAY_OUT = "give value.item(), which waits for the device: once in a while, not in every step"


def plain_number(value: object) -> float | None:
    """Give a plain number as a float; None where it is none, or too large for one.

    Python's numbers and numpy's scalars are plain. Arrays and tensors of any library are not,
    though many can be turned into a float: that can wait for a device.
    """
    if not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return None


def way_out(value: object) -> str:
    """Say what is wrong with a value that is no plain number, and what to give instead."""
    kind = type(value)
    name = f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"[:80]
    is_array = hasattr(kind, "item") or hasattr(kind, "__array__")
    return f"a {name} is not read; {TENSOR_WAY_OUT if is_array else WAY_OUT}"
