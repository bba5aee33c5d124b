"""What this sidecar cannot see on this node, and why; said at start and in the summary."""

from __future__ import annotations

from tracecore_sidecar.sources.stacks import find_py_spy

NOT_READ = ("GPUs, kernel log, network and cgroup: not read by this version",)
"""Signals no source exists for yet. Absence of an alarm about them means nothing."""


def of_this_node() -> tuple[str, ...]:
    """Give the blind spots, each as ``signal: reason``."""
    if find_py_spy() is None:
        return ("stacks: py-spy is not installed", *NOT_READ)
    return NOT_READ
