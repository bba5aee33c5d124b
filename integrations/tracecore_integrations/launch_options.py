"""The options of `tracecore run` that are ours, told apart from torchrun's.

Ours stand first; from the first token that is not ours everything belongs to torchrun and is
handed on untouched. None of our names is a torchrun option, an abbreviation of one (argparse
accepts those), or abbreviated by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracecore_train.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

VALUE_OPTIONS = ("--output", "--fault", "--job-id", "--on-hang")
"""Our options that take a value, as ``--name value`` or ``--name=value``."""
SWITCHES = ("--quiet",)
"""Our options that take none."""

HELP = """\
Usage: tracecore run [our options] [torchrun options] script [script arguments]

Runs torchrun with a sidecar beside it that says what broke: which rank, where, and why.
The script needs no change. Our options stand before torchrun's:

  --output DIR    where verdicts, records and summaries go
                  (default: ./tracecore-runs/<job id>/)
  --job-id ID     name of the job, the same on every node
                  (default: TRACECORE_JOB_ID, the scheduler's job, --rdzv-id, or a new one)
  --fault SPEC    rehearse trouble: slow, hang or kill one rank; may be repeated
  --on-hang WHAT  what follows a hang, once the evidence about it is in place:
                  report   nothing more (default, or TRACECORE_ON_HANG)
                  dump     leave dumps that torch's own analyzer reads, too
                  abort    end this attempt, so that torchrun restarts it
                  COMMAND  run a command line; {bundle} in it becomes the path of the
                           evidence, which otherwise comes last
  --quiet         plain lines only for verdicts and the summary, no live line
  -h, --help      this text

Everything else goes to torchrun unchanged; `torchrun --help` lists its options.
With TRACECORE_DISABLE=1 in the environment this is plain torchrun.

Examples:
  tracecore run --nproc-per-node 2 train.py --lr 3e-4
  tracecore run --output /data/runs/7 --nproc-per-node 8 --max-restarts 3 -m my.training
  tracecore run --fault slow:rank=1,ms=50,from=40,where=backward --nproc-per-node 2 train.py
  tracecore run --fault hang:rank=1,at=60,for=30 --nproc-per-node 2 train.py
  tracecore run --on-hang abort --nproc-per-node 8 --max-restarts 3 train.py
"""


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What stood before torchrun's part of the command line."""

    output: str | None = None
    job_id: str | None = None
    faults: tuple[str, ...] = ()
    on_hang: str | None = None
    is_quiet: bool = False
    is_help: bool = False


def parse_options(argv: Sequence[str]) -> tuple[LaunchOptions, list[str]]:
    """Split a command line into our options and torchrun's part.

    Raises :class:`ConfigError` when one of our options lacks its value or has one too many.
    """
    values: dict[str, list[str]] = {name: [] for name in VALUE_OPTIONS}
    switches: set[str] = set()
    rest = list(argv)
    while rest:
        name, has_value, value = rest[0].partition("=")
        if name in ("-h", "--help") and not has_value:
            return LaunchOptions(is_help=True), []
        if name in SWITCHES:
            if has_value:
                raise ConfigError(f"{name} takes no value, got {value!r}")
            switches.add(name)
        elif name in VALUE_OPTIONS:
            if not has_value:
                if len(rest) < 2:
                    raise ConfigError(f"{name} needs a value; see tracecore run --help")
                value = rest.pop(1)
            if not value:
                raise ConfigError(f"{name} needs a value, got an empty one")
            values[name].append(value)
        else:
            break
        rest.pop(0)
    options = LaunchOptions(
        output=_last(values["--output"]),
        job_id=_last(values["--job-id"]),
        faults=tuple(values["--fault"]),
        on_hang=_last(values["--on-hang"]),
        is_quiet="--quiet" in switches,
    )
    return options, rest


def misplaced(rest: Sequence[str]) -> str | None:
    """Give the first token of torchrun's part that is spelled like one of our options."""
    names = (*VALUE_OPTIONS, *SWITCHES)
    return next((token for token in rest if token.partition("=")[0] in names), None)


def _last(values: list[str]) -> str | None:
    return values[-1] if values else None
