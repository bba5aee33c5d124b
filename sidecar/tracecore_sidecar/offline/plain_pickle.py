"""Pickles of plain data: looked through before they are loaded.

Python's unpickler can be kept from calling anything, but not from taking gigabytes for a few
bytes of input (a memo index is the size of an array). So the instructions are read first: only
those that plain dicts, lists, tuples, texts and numbers need are let through, and every index and
length is checked.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any, NoReturn

from tracecore_sidecar.offline.refused import COPY_AGAIN, RefusedError

MAX_PROTOCOL = 5
_STOP = 0x2E
_LONG_BINPUT = 0x72
_SIMPLE = re.compile(
    rb"(?:h.|[(}\])esuatlN0\x85-\x89\x94]|[jJ].{4}|K.|r..[\x00-\x03]\x00|M..|\x8a\x08.{8}|q."
    rb"|G.{8}){0,4096}",
    re.DOTALL,
)
"""A run of instructions of fixed length that can do no harm."""
_WITH_OPERAND, _MAX_OPERAND = frozenset(b"hqKMjJG"), 8
"""Instructions among these with bytes of fixed number behind them."""
_FREE_MEMO = 0x3FFFF
"""Memo index that needs no reason: an array of two megabytes."""
_LENGTHS = {
    0x58: 4,  # BINUNICODE
    0x8A: 1,  # LONG1
    0x8C: 1,  # SHORT_BINUNICODE
    0x8D: 8,  # BINUNICODE8
}
"""Instructions with a text or number behind them: bytes of its length."""


class _PlainUnpickler(pickle.Unpickler):
    """Finds no class and follows no reference: the check before leaves it nothing to look for."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise RefusedError(f"a pickle that asks for {module}.{name}: not loaded")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise RefusedError("a pickle that refers to something outside: not loaded")


def load_plain(data: bytes) -> Any:
    """Give the value of a pickle that holds plain data only; raise :class:`RefusedError` if not."""
    _check(data)
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except RefusedError:
        raise
    except Exception as error:  # noqa: BLE001  (the unpickler raises whatever the content brings up)
        raise RefusedError(f"a damaged pickle: {str(error)[:80]}") from None


def _check(data: bytes) -> None:
    if len(data) < 2 or data[0] != 0x80 or data[1] > MAX_PROTOCOL:
        raise RefusedError("a pickle of a protocol that is not known")
    at, num_puts = 2, 0
    while True:
        match = _SIMPLE.match(data, at) if at < len(data) else None
        at = match.end() if match else at
        if at >= len(data):
            raise RefusedError(f"a damaged pickle: it ends in the middle{COPY_AGAIN}")
        code = data[at]
        if code == _STOP:
            return
        if code == _LONG_BINPUT:
            index = int.from_bytes(data[at + 1 : at + 5], "little")
            num_puts += 1
            if index > _FREE_MEMO + num_puts:
                raise RefusedError("a pickle with a memo index far beyond its content: not loaded")
            at += 5
        elif code == 0x95:  # FRAME: its length is only a hint
            at += 9
        elif code in _LENGTHS:
            begin = at + 1 + _LENGTHS[code]
            at = begin + int.from_bytes(data[at + 1 : begin], "little")
        elif code in _WITH_OPERAND and len(data) - at <= _MAX_OPERAND:
            at = len(data)
        elif match is None or match.end() == match.start():
            raise RefusedError(
                f"a pickle that holds more than plain data (instruction {chr(code)!r}): not loaded"
            )
