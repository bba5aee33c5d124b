"""The one visible list of detectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracecore_sidecar.detectors.declared_pause import DeclaredPauseDetector
from tracecore_sidecar.detectors.hang import HangDetector
from tracecore_sidecar.detectors.long_pause import LongPauseDetector
from tracecore_sidecar.detectors.straggler import StragglerDetector

if TYPE_CHECKING:
    from tracecore_sidecar.detectors import Detector


def built_in() -> tuple[Detector[Any], ...]:
    """Make one of each detector, in the order they are evaluated."""
    return (HangDetector(), StragglerDetector(), DeclaredPauseDetector(), LongPauseDetector())
