"""All signals' lanes to the upstream endpoints of this sidecar's environment."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tracecore_sidecar.forward.lane import Lane
from tracecore_sidecar.forward.settings import load_settings
from tracecore_sidecar.forward.spool import Entry
from tracecore_sidecar.otlp_signals import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tracecore_sidecar.forward.settings import UpstreamSettings
    from tracecore_sidecar.otlp_signals import Signal

QUEUE_DIRECTORY = "forward-queue"
"""Below the node's output."""
STOP_TIMEOUT_S = 1.0
"""For the last batches, verdicts among them; what is left waits on disk for the next sidecar."""


class Forwarder:
    """Forwards what is configured, and nothing when nothing is."""

    def __init__(
        self, environ: Mapping[str, str], output: Path, *, listen_port: int | None = None
    ) -> None:
        """Read the settings. ``listen_port``: where this sidecar itself takes OTLP."""
        settings, self.problems = load_settings(environ)
        self._lanes: dict[str, Lane] = {}
        for signal in SIGNALS:
            if signal.name not in settings:
                continue
            chosen = settings[signal.name]
            if chosen.port == listen_port and _is_loopback(chosen):
                self.problems.append(f"{signal.name}: {chosen.place} is this sidecar itself")
                continue
            directory = output / QUEUE_DIRECTORY / signal.name
            self._lanes[signal.name] = Lane(signal, chosen, directory)

    def start(self) -> None:
        """Begin to send."""
        for lane in self._lanes.values():
            lane.start()

    def is_full(self, signal: Signal) -> bool:
        """Say whether something would have to be dropped for one more body."""
        lane = self._lanes.get(signal.name)
        return lane is not None and lane.queue.is_full

    def offer(self, signal: Signal, body: bytes, num_items: int) -> None:
        """Take a serialised request; without an endpoint for its signal it goes nowhere."""
        lane = self._lanes.get(signal.name)
        if lane is not None:
            lane.offer(Entry(body, num_items))

    def close(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Send what can be sent in time and leave the rest on disk."""
        deadline = time.monotonic() + timeout_s
        for lane in self._lanes.values():
            lane.stop()
        for lane in self._lanes.values():
            lane.join(deadline)

    def describe(self) -> str:
        """Say for the start line where what goes; empty when nothing is asked for."""
        places: dict[str, list[str]] = {}
        for name, lane in self._lanes.items():
            places.setdefault(lane.place, []).append(name)
        parts = [f"{', '.join(names)} to {place}" for place, names in places.items()]
        parts += [f"not {problem}" for problem in self.problems]
        return f"forwarding {'; '.join(parts)}" if parts else ""

    def as_dict(self) -> dict[str, Any]:
        """Give the counters by signal."""
        return {
            name: {
                **asdict(lane.stats),
                "num_dropped": lane.queue.num_dropped,
                "waiting_bytes": lane.queue.num_bytes,
                "spill_error": lane.queue.spill_error,
                "endpoint": lane.place,
            }
            for name, lane in self._lanes.items()
        }


def _is_loopback(settings: UpstreamSettings) -> bool:
    try:
        return ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        return settings.host == "localhost"
