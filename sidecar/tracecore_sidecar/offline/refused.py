"""A file that is not read, with the reason a person gets to see."""

from __future__ import annotations

from tracecore_train.errors import TracecoreError


class RefusedError(TracecoreError):
    """The content is hostile, damaged, too large, or nothing that is known here."""


class UnknownKindError(RefusedError):
    """The content is sound and nothing that is read here: no news in a directory of all sorts."""
