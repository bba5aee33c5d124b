"""The docs tell the truth about names."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from tracecore_train.config import ENVIRONMENT, HOOK_NAMES, Config
from tracecore_train.wire.metrics import METRICS
from tracecore_train.wire.records import RecordKind

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_setting_is_documented() -> None:
    """configuration.md names every variable, argument and hook."""
    text = (DOCS / "configuration.md").read_text()
    for name in (*ENVIRONMENT, *HOOK_NAMES, *(field.name for field in fields(Config))):
        assert f"`{name}`" in text, name


def test_every_record_kind_and_metric_is_documented() -> None:
    """wire.md names every record kind and every metric."""
    text = (DOCS / "wire.md").read_text()
    for name in (*(kind.value for kind in RecordKind), *(m.name for m in METRICS)):
        assert f"`{name}`" in text, name
