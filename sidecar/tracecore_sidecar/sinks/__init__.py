"""Where incidents go: files, later other systems. A sink sees incidents, never records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tracecore_sidecar.incidents import IncidentEvent
    from tracecore_sidecar.verdicts import JobInfo


class Sink(Protocol):
    """Takes incidents as they change. Neither method raises or waits for long."""

    def on_event(self, event: IncidentEvent, job: JobInfo) -> None:
        """Take one change of one incident of ``job`` (as it was when the change happened)."""
        ...

    def close(self) -> None:
        """Finish; nothing comes after it."""
        ...
