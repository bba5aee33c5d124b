"""The layers of the design hold: who may import whom, and what import costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREES = {
    "tracecore_train": ROOT / "tracecore_train",
    "tracecore_sidecar": ROOT / "sidecar" / "tracecore_sidecar",
    "tracecore_integrations": ROOT / "integrations" / "tracecore_integrations",
}
OURS = tuple(TREES)

ALLOWED: dict[str, tuple[str, ...]] = {
    "tracecore_train.wire": ("tracecore_train.errors", "tracecore_train.wire"),
    "tracecore_train.recorder": (
        "tracecore_train.errors",
        "tracecore_train.wire",
        "tracecore_train.recorder",
    ),
    "tracecore_train.hooks": (
        "tracecore_train.errors",
        "tracecore_train.guard",
        "tracecore_train.runtime",
        "tracecore_train.wire",
        "tracecore_train.recorder",
        "tracecore_train.hooks",
    ),
    "tracecore_train.export": (
        "tracecore_train.errors",
        "tracecore_train.guard",
        "tracecore_train.identity",
        "tracecore_train.wire",
        "tracecore_train.recorder",
        "tracecore_train.export",
    ),
    "tracecore_sidecar.state": (
        "tracecore_train.errors",
        "tracecore_train.wire",
        "tracecore_sidecar.state",
        "tracecore_sidecar.verdicts",
    ),
    "tracecore_sidecar.sources": (
        "tracecore_train.errors",
        "tracecore_train.runtime",
        "tracecore_train.recorder.page",
        "tracecore_train.wire",
        "tracecore_sidecar.sources",
    ),
    "tracecore_sidecar.detectors": (
        "tracecore_train.wire",
        "tracecore_sidecar.state.view",
        "tracecore_sidecar.verdicts",
        "tracecore_sidecar.detectors",
    ),
    "tracecore_sidecar.otlp_signals": (),
    "tracecore_sidecar.intake": (
        "tracecore_train.errors",
        "tracecore_train.wire",
        "tracecore_sidecar.otlp_signals",
        "tracecore_sidecar.intake",
    ),
    "tracecore_sidecar.receiver": (
        "tracecore_train.errors",
        "tracecore_train.wire",
        "tracecore_sidecar.otlp_signals",
        "tracecore_sidecar.intake",
    ),
    "tracecore_sidecar.forward": (
        "tracecore_train.__about__",
        "tracecore_sidecar.otlp_signals",
        "tracecore_sidecar.render",
        "tracecore_sidecar.forward",
    ),
    "tracecore_sidecar.sinks.otlp_events": (
        "tracecore_train.wire",
        "tracecore_sidecar.otlp_signals",
        "tracecore_sidecar.render",
        "tracecore_sidecar.incidents",
        "tracecore_sidecar.verdicts",
    ),
    "tracecore_sidecar.telemetry": (
        "tracecore_train.__about__",
        "tracecore_train.wire",
        "tracecore_sidecar.incidents",
        "tracecore_sidecar.state",
        "tracecore_sidecar.telemetry",
        "tracecore_sidecar.verdicts",
    ),
    "tracecore_sidecar.bundle": (
        "tracecore_train",
        "tracecore_sidecar.bundle",
        "tracecore_sidecar.detectors",
        "tracecore_sidecar.pull_policy",
        "tracecore_sidecar.render",
        "tracecore_sidecar.sinks",
        "tracecore_sidecar.sources",
        "tracecore_sidecar.state.view",
        "tracecore_sidecar.verdicts",
        "tracecore_sidecar.incidents",
    ),
    "tracecore_sidecar.on_hang": (
        "tracecore_train",
        "tracecore_sidecar.bundle",
        "tracecore_sidecar.incidents",
        "tracecore_sidecar.on_hang",
        "tracecore_sidecar.pull_policy",
        "tracecore_sidecar.sources",
        "tracecore_sidecar.state.view",
        "tracecore_sidecar.verdicts",
    ),
    "tracecore_sidecar.offline": (
        "tracecore_train.errors",
        "tracecore_train.recorder.page",
        "tracecore_train.wire",
        "tracecore_sidecar.detectors",
        "tracecore_sidecar.incidents",
        "tracecore_sidecar.offline",
        "tracecore_sidecar.render",
        "tracecore_sidecar.replay",
        "tracecore_sidecar.sources.recorder_dump",
        "tracecore_sidecar.state",
        "tracecore_sidecar.verdicts",
    ),
    "tracecore_sidecar.verdicts": (),
    "tracecore_sidecar.incidents": ("tracecore_sidecar.verdicts",),
}
"""Package or module -> what of ours it may import."""


def imports_of(path: Path) -> set[str]:
    """Give the modules a file imports, by full name (functions' own imports included)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(name: str) -> list[Path]:
    """Give the files of a package or module."""
    top, *rest = name.split(".")
    path = TREES[top].joinpath(*rest)
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == p or module.startswith(p + ".") for p in packages)


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_a_layer_imports_only_what_lies_before_it(layer: str) -> None:
    """No file of a layer imports one of ours that the design does not let it see."""
    files = files_of(layer)
    assert files, f"{layer} has no files"
    for path in files:
        # `from tracecore_train import runtime` names the bare package too: judge its members.
        bad = {
            module
            for module in imports_of(path)
            if is_within(module, OURS)
            and module not in OURS
            and not is_within(module, ALLOWED[layer])
            and not any(allowed.startswith(module + ".") for allowed in ALLOWED[layer])
        }
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_the_rank_side_never_imports_the_sidecar() -> None:
    """tracecore_train works without the sidecar's packages."""
    for path in files_of("tracecore_train"):
        bad = {m for m in imports_of(path) if is_within(m, OURS[1:])}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_integrations_use_public_names() -> None:
    """Integrations see what a user sees, and the wire."""
    public = (
        "tracecore_train.config",
        "tracecore_train.errors",
        "tracecore_train.faults",
        "tracecore_train.guard",
        "tracecore_train.hooks.patch",
        "tracecore_train.runtime",
        "tracecore_train.wire",
        "tracecore_integrations",
    )
    for path in files_of("tracecore_integrations"):
        bad = {
            m
            for m in imports_of(path)
            if is_within(m, OURS) and m not in OURS and not is_within(m, public)
        }
        bad -= {"tracecore_train.__version__", "tracecore_train.__about__"}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_importing_the_rank_package_loads_only_the_standard_library() -> None:
    """`import tracecore_train` pulls in no torch, no numpy, no protobuf."""
    code = (
        "import sys; before = set(sys.modules); import tracecore_train; "
        "new = {n.split('.')[0] for n in set(sys.modules) - before}; "
        "print(sorted(n for n in new if n not in sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "['tracecore_train']"


def test_the_sidecar_works_without_torch() -> None:
    """No module of the sidecar imports torch, not even lazily."""
    for path in files_of("tracecore_sidecar"):
        bad = {m for m in imports_of(path) if is_within(m, ("torch", "lightning"))}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"
