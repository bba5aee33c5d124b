"""A terminal's screen, as far as the pinned status row needs one."""

from __future__ import annotations

import re

_SEQUENCE = re.compile(r"\x1b(?:\[([0-9;]*)([A-Za-z])|([78D]))")


class Screen:
    """Rows of text, a cursor, a scroll region. An unknown escape sequence is an error."""

    def __init__(self, columns: int, rows: int) -> None:
        """Start empty with the cursor at the top."""
        self.columns, self.rows = columns, rows
        self.lines = [""] * rows
        self.scrolled: list[str] = []
        """Lines that left the screen at the top."""
        self.x = self.y = 0
        self._saved = (0, 0)
        self._top, self._bottom = 0, rows - 1

    def feed(self, text: str) -> None:
        """Show what was written. Line feeds return to the first column, as a tty makes them."""
        position = 0
        while position < len(text):
            if text[position] == "\x1b":
                match = _SEQUENCE.match(text, position)
                assert match, f"unknown sequence {text[position : position + 8]!r}"
                self._control(match[1] or "", match[2] or match[3])
                position = match.end()
                continue
            self._put(text[position])
            position += 1

    def _put(self, char: str) -> None:
        if char == "\n":
            self.x = 0
            self._index()
        elif char == "\r":
            self.x = 0
        else:
            assert char.isprintable(), f"{char!r} reached the terminal"
            line = self.lines[self.y].ljust(self.x)
            self.lines[self.y] = line[: self.x] + char + line[self.x + 1 :]
            self.x += 1
            assert self.x < self.columns, "a line ran into the margin"

    def _index(self) -> None:
        if self.y == self._bottom:
            gone = self.lines.pop(self._top)
            self.lines.insert(self._bottom, "")
            if self._top == 0:
                self.scrolled.append(gone)
        else:
            self.y = min(self.y + 1, self.rows - 1)

    def _control(self, arguments: str, command: str) -> None:
        numbers = [int(number) for number in arguments.split(";") if number]
        if command == "7":
            self._saved = (self.x, self.y)
        elif command == "8":
            self.x, self.y = self._saved
        elif command == "D":
            self._index()
        elif command == "A":
            self.y = max(self._top, self.y - (numbers or [1])[0])
        elif command == "H":
            row, column = numbers or [1, 1]
            self.y, self.x = min(row, self.rows) - 1, column - 1
        elif command == "K" and numbers == [2]:
            self.lines[self.y] = ""
        elif command == "r":
            top, bottom = numbers or [1, self.rows]
            self._top, self._bottom = top - 1, min(bottom, self.rows) - 1
            self.x = self.y = 0
        else:
            raise AssertionError(f"unknown sequence {arguments}{command}")
