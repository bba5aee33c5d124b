"""A file that is not read, with the reason a person gets to see."""

from __future__ import annotations

from tracecore_train.errors import TracecoreError

COPY_AGAIN = "; copy it again once it is written"
"""The way out of a file that ends in the middle."""


class RefusedError(TracecoreError):
    """The content is hostile, damaged, too large, or nothing that is known here."""


class UnknownKindError(RefusedError):
    """The content is sound and nothing that is read here: no news in a directory of all sorts."""


def unreadable(error: OSError) -> str:
    """Say why the system does not let a file be read, and the way out where there is one."""
    is_denied = isinstance(error, PermissionError)
    way_out = ": run as the user of the job, or as root" if is_denied else ""
    return f"cannot be read: {error.strerror or error}{way_out}"
