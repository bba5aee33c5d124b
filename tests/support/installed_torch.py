"""What the installed torch has, asked of torch itself. Tests of what it lacks are skipped."""

from __future__ import annotations

import pytest


def has_gloo_recorder() -> bool:
    """Say whether gloo counts in a flight recorder (torch 2.8 and newer)."""
    extension = pytest.importorskip("torch._C._distributed_c10d")
    return hasattr(extension, "_dump_fr_trace_json")


def has_gloo_entries() -> bool:
    """Say whether its entries can be pulled from the worker server (torch 2.10 and newer)."""
    extension = pytest.importorskip("torch._C._distributed_c10d")
    return "fr_trace_json" in extension._get_handler_names()


def unseen_on_gloo() -> set[str]:
    """Give the signals that a healthy job on gloo reports as blind here."""
    unseen = set() if has_gloo_recorder() else {"collectives.counters"}
    return unseen if has_gloo_entries() else unseen | {"collectives.entries"}
