"""What TraceCore sees on each version of torch: a table of version by signal, really tried.

Outside CI: each version is installed into a throwaway environment. There the doctor says how every
signal stands, the tests of the capturing code run (a signal whose tests fail is marked so, whatever
the doctor says), and one of two ranks hangs under `tracecore run`. A version that cannot be
installed or tried stops no other one; its column says why.

    python tests/matrix/run.py                      # 2.6 2.8 2.10 2.13 2.14 newest
    python tests/matrix/run.py 2.6 newest --output matrix.md
    python tests/matrix/run.py 2.6 --keep envs      # install once, try often
    python tests/matrix/run.py --here --no-tests    # this very environment, installing nothing

A CUDA build is 3 gigabytes to load and 5 to 7 on disk; with what pip unpacks meanwhile 12 are asked
for (--needs; TMPDIR chooses the place). A version takes 5 to 10 minutes. pip's own variables
(PIP_INDEX_URL and the like) choose where torch comes from; CPU builds are a tenth of the size.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.matrix.column import Column, examine
from tests.matrix.commands import CommandError
from tests.matrix.environments import environment

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSIONS = ("2.6", "2.8", "2.10", "2.13", "2.14", "newest")
NEEDED_GB = 12.0
"""A CUDA build installed takes up to 7.2 GB, and pip 4 GB more while it installs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table; exit code 1 where a version could not be tried or something fails."""
    args = _parser().parse_args(argv)
    columns: list[Column] = []
    wanted = ["here"] if args.here else args.versions or VERSIONS
    for number, version in enumerate(wanted, 1):
        sys.stderr.write(f"matrix: {version} ({number} of {len(wanted)})\n")
        began = time.monotonic()
        columns.append(_column(version, args))
        ending = columns[-1].problem or columns[-1].version
        took_s = time.monotonic() - began
        sys.stderr.write(f"matrix: {version}: {ending}, {took_s:.0f} s in all\n")
        if args.output is not None:
            # After each: whoever stops the script keeps what there is.
            args.output.write_text(render(columns))
    sys.stdout.write(render(columns))
    return int(not all(column.is_well for column in columns))


def render(columns: Sequence[Column]) -> str:
    """Give the table and the reasons below it, as Markdown."""
    names = list(dict.fromkeys(name for column in columns for name in column.states))
    lines = [
        f"| signal | {' | '.join(column.version for column in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in names:
        cells = " | ".join(column.states.get(name, "not tried") for column in columns)
        lines.append(f"| `{name}` | {cells} |")
    lines.append(f"| tests | {' | '.join(map(_tests_text, columns))} |")
    lines.append(f"| hang of rank 1: named | {' | '.join(map(_hang_text, columns))} |")
    for column in columns:
        lines += ["", f"**{column.version}**", ""]
        if column.problem:
            lines.append(f"- not usable: {column.problem}")
        lines += [
            f"- `{name}` {state}: {column.reasons[name]}"
            for name, state in column.states.items()
            if state in {"blind", "fails"}
        ]
    return "\n".join(lines) + "\n"


def _column(version: str, args: argparse.Namespace) -> Column:
    parts = {"with_tests": args.tests, "with_hang": args.hang}
    if args.here:
        return examine(sys.executable, version, **parts)
    try:
        with environment(
            version, python=args.python, keep=args.keep, needed_gb=args.needs
        ) as python:
            return examine(python, version, **parts)
    except (CommandError, OSError) as error:
        return Column(version=version, problem=f"cannot be installed ({error})")


def _tests_text(column: Column) -> str:
    counts = column.num_tests
    return (
        ", ".join(f"{counts[e]} {e}" for e in ("passed", "failed", "skipped") if e in counts)
        or "none"
    )


def _hang_text(column: Column) -> str:
    return f"fails: {column.hang}" if column.is_hang_wrong else column.hang or "not tried"


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "versions", nargs="*", metavar="VERSION", help="2.6 (its last), 2.7.0, newest ..."
    )
    parser.add_argument("--here", action="store_true", help="this environment, installing nothing")
    parser.add_argument("--no-tests", dest="tests", action="store_false", help="no capture tests")
    parser.add_argument("--no-hang", dest="hang", action="store_false", help="no rehearsed hang")
    parser.add_argument("--output", type=Path, help="write the table to this file too")
    parser.add_argument("--keep", type=Path, help="keep the environments there, and use them again")
    parser.add_argument(
        "--needs",
        type=float,
        default=NEEDED_GB,
        metavar="GB",
        help="free space without which nothing is installed (default: %(default)g)",
    )
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter to make the environments with"
    )
    return parser


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # So that a throwaway environment is thrown away then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
