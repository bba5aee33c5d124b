"""An exception in words: type, message and the innermost frame of the user's own code.

It is put into words while the process dies, so nothing here may run code of the user or of torch:
only arguments of plain types are written out. The text of a tensor would wait for its device and
hold values; it becomes the name of its type.
"""

from __future__ import annotations

import os
import sysconfig
from dataclasses import dataclass
from types import WrapperDescriptorType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType, TracebackType

MAX_TYPE = 120
"""Characters of a type's name that are kept."""
MAX_MESSAGE = 500
"""Characters of a message that are kept: its beginning and, after a gap, its end."""
MAX_FRAME = 200
MAX_FRAMES = 100_000
"""Frames looked at; far above any recursion limit that works."""
_KEPT_END = 150
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STANDARD_LIBRARY = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_PLAIN = (str, int, float, complex, bool, type(None))


@dataclass(frozen=True, slots=True)
class ExceptionText:
    """What is told about one exception."""

    type_name: str
    message: str
    frame: str
    """``function (file:line)``; empty where there is no traceback."""

    @property
    def summary(self) -> str:
        """Everything in one line, the most telling first."""
        where = f" in {self.frame}" if self.frame else ""
        return f"{self.type_name}{where}: {self.message}"


def describe(error: BaseException, traceback: TracebackType | None) -> ExceptionText:
    """Put an exception into words, without calling anything that is not Python's own."""
    return ExceptionText(type_name(type(error)), message_of(error), innermost_frame(traceback))


def type_name(kind: type[BaseException]) -> str:
    """Give the full name of an exception's class."""
    module = kind.__module__
    name = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    return name[:MAX_TYPE]


def message_of(error: BaseException) -> str:
    """Give the message on one line, cut in its middle."""
    arguments = tuple(error.args)
    is_plain = all(type(argument) in _PLAIN for argument in arguments)
    if is_plain and isinstance(type(error).__str__, WrapperDescriptorType):
        return shorten(str(error))
    return shorten(", ".join(_plain_text(argument) for argument in arguments[:10]))


def shorten(text: str) -> str:
    """Give a text on one line, cut in its middle: the end of a long message often has the cause."""
    if len(text) > 100 * MAX_MESSAGE:
        text = f"{text[: 50 * MAX_MESSAGE]} {text[-50 * MAX_MESSAGE :]}"
    line = " ".join(text.split())
    if len(line) <= MAX_MESSAGE:
        return line
    return f"{line[: MAX_MESSAGE - _KEPT_END - 3]}...{line[-_KEPT_END:]}"


def innermost_frame(traceback: TracebackType | None) -> str:
    """Give the innermost frame of the user's code; where there is none, the innermost."""
    last = last_own = None
    for _ in range(MAX_FRAMES):
        if traceback is None:
            break
        last = traceback
        if is_users_file(traceback.tb_frame.f_code.co_filename):
            last_own = traceback
        traceback = traceback.tb_next
    chosen = last_own or last
    if chosen is None:
        return ""
    return frame_text(chosen.tb_frame.f_code, chosen.tb_lineno)[:MAX_FRAME]


def frame_text(code: CodeType, line: int) -> str:
    """Name a place in the code: ``function (file:line)``."""
    return f"{code.co_name} ({os.path.basename(code.co_filename)}:{line})"


def is_users_file(file: str) -> bool:
    """Say whether a file of code is neither Python's, nor installed, nor ours."""
    return not (
        file.startswith((_OURS, _STANDARD_LIBRARY, "<frozen"))
        or any(mark in file for mark in _INSTALLED)
    )


def _plain_text(argument: object) -> str:
    if type(argument) in _PLAIN:
        return str(argument)
    return f"<{type(argument).__qualname__}>"
