"""What TraceCore costs: one table with spreads, budgets, and A/A noise beside each A/B.

    python tests/benchmarks/run.py [--quick] [--only GROUP] [--peers] [--json FILE]

Measured are the training thread, rarer calls on it, the import, the export thread, what a rank
sends, the sidecar under synthetic ranks, the stall a recorder pull causes, and whole jobs; with
--peers also what others cost that a user would pick instead, which installs them into a throwaway
environment. A busy machine shows in the load that is printed and in the A/A rows. Exit code 1: a
row is over its budget.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import (
    bytes_sent,
    export_thread,
    import_cost,
    metrics_page,
    peers,
    pull_stall,
    rarer_calls,
    sidecar_load,
    training_thread,
    whole_run,
)
from tests.benchmarks.measure import Row, load

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS: dict[str, Callable[[bool], list[Row]]] = {
    "import": import_cost.measure,
    "training": training_thread.measure,
    "calls": rarer_calls.measure,
    "export": export_thread.measure,
    "bytes": bytes_sent.measure,
    "sidecar": sidecar_load.measure,
    "pull": pull_stall.measure,
    "page": metrics_page.measure,
}
WHOLE, PEERS = "whole", "peers"
"""Parts that take the options about whole jobs; peers only where asked for."""


def main() -> int:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter samples")
    parser.add_argument(
        "--only", choices=[*PARTS, WHOLE, PEERS], action="append", help="parts to run"
    )
    parser.add_argument("--peers", action="store_true", help="run the peers too")
    parser.add_argument(
        "--ranks", type=int, action="append", help="ranks of whole jobs; may be repeated (2)"
    )
    parser.add_argument("--blocks", type=int, help="blocks of whole jobs")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    ranks = args.ranks or [2]
    side_by_side = peers.SideBySide(ranks, args.blocks)
    whole = functools.partial(whole_run.measure, ranks=ranks, num_blocks=args.blocks)
    parts: dict[str, Callable[[bool], list[Row]]]
    parts = {**PARTS, WHOLE: whole, PEERS: side_by_side.measure}
    chosen = set(args.only or [*PARTS, WHOLE]) | ({PEERS} if args.peers else set())
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.release()}"
    print(f"machine: {machine}; load {load():.2f} at the start\n")
    print(_line("what", "measured", "spread", "budget", "within"))
    rows: list[Row] = []
    loads: dict[str, tuple[float, float]] = {}
    for name, measure in parts.items():
        if name not in chosen:
            continue
        before = load()
        for row in measure(args.quick):
            rows.append(row)
            print(_format(row), flush=True)
        loads[name] = (before, load())
    print("\nload before and after each part (our own included):")
    print("  " + ", ".join(f"{name} {a:.2f}/{b:.2f}" for name, (a, b) in loads.items()))
    if args.json:
        document = {
            "machine": machine,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "is_quick": args.quick,
            "load": loads,
            "peers": asdict(side_by_side.setup),
            "rows": [asdict(row) | {"is_within": row.is_within} for row in rows],
        }
        args.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if any(row.is_within is False for row in rows) else 0


def _format(row: Row) -> str:
    if not row.num_samples:
        return f"{row.group}: {row.what}  {row.note}"
    within = {None: "", True: "yes", False: "NO"}[row.is_within]
    budget = "" if row.budget is None else f"<= {row.budget:g}"
    line = _line(
        f"{row.group}: {row.what}",
        f"{row.measured:.3g} {row.unit}",
        f"{row.low:.3g} .. {row.high:.3g}",
        budget,
        within,
    )
    return f"{line}  {row.note}".rstrip()


def _line(what: str, measured: str, spread: str, budget: str, within: str) -> str:
    return f"{what:<83}{measured:>14}  {spread:<18}{budget:<9}{within:<7}"


if __name__ == "__main__":
    sys.exit(main())
