"""The ``tracecore`` command. Each subcommand imports what it needs when it runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from tracecore_train.__about__ import __version__
from tracecore_train.errors import TracecoreError


def main() -> int:
    """Run the command line; return the exit code.

    ``tracecore run`` is handed over whole: its arguments are torchrun's, not ours to parse.
    """
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"]:
        from tracecore_integrations.torchrun import main as run_main

        return run_main(arguments[1:])
    try:
        cli.main(arguments, prog_name="tracecore", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except (TracecoreError, OSError) as error:
        click.echo(f"tracecore: {error}", err=True)
        return 1
    except (click.Abort, KeyboardInterrupt):
        return 130
    return 0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tracecore")
def cli() -> None:
    """Say what broke in a distributed PyTorch run: which rank, where, why, at what cost.

    \b
    Examples:
      tracecore run --nproc-per-node 8 train.py --lr 3e-4
      tracecore replay tracecore-runs/20260101-120000-ab12
    """


@cli.command(name="run", add_help_option=False)
def run_help() -> None:
    """Run a script under torchrun, watched (see `tracecore run --help`)."""


@cli.command()
@click.option("--job-id", default=None, help="Name of the job; default: TRACECORE_JOB_ID or 'job'.")
@click.option(
    "--job-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Runtime directory of the job: socket and rank pages. Default: made from the job id.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Where the job's files go. Default: ./tracecore-runs/<job id>.",
)
@click.option("--node-rank", type=int, default=0, show_default=True, help="Index of this node.")
@click.option(
    "--display",
    type=click.Choice(["live", "plain", "quiet"]),
    default="plain",
    show_default=True,
    help="live: a pinned status line; plain: lines; quiet: only start, verdicts and summary.",
)
@click.option(
    "--pull-interval",
    type=float,
    default=5.0,
    show_default=True,
    help="Seconds between two reads of each rank's flight recorder.",
)
@click.option(
    "--listen",
    envvar="TRACECORE_LISTEN",
    default=None,
    metavar="ADDRESS",
    help="Take OTLP over loopback TCP too: 127.0.0.1:4318. Default: TRACECORE_LISTEN, or none.",
)
@click.option("--parent-pid", type=int, default=None, hidden=True)
def sidecar(
    job_id: str | None,
    job_dir: Path | None,
    output: Path | None,
    node_rank: int,
    display: str,
    pull_interval: float,
    listen: str | None,
    parent_pid: int | None,
) -> None:
    """Run a sidecar by hand, for a job started with plain torchrun.

    \b
    Example (two shells):
      tracecore sidecar --job-id demo
      TRACECORE_ENDPOINT=unix:/run/user/1000/tracecore/demo/otlp.sock TRACECORE_JOB_ID=demo \\
        torchrun --nproc-per-node 2 train.py        # train.py calls tracecore_train.init()
    """
    import asyncio

    import pydantic

    from tracecore_sidecar.config import Display, SidecarConfig
    from tracecore_sidecar.daemon import Daemon
    from tracecore_train import runtime

    job_id = job_id or os.environ.get("TRACECORE_JOB_ID") or "job"
    try:
        config = SidecarConfig(
            job_id=job_id,
            job_dir=job_dir or runtime.job_dir(job_id),
            output=output or Path("tracecore-runs") / runtime.job_dir(job_id).name,
            node_rank=node_rank,
            parent_pid=parent_pid,
            display=Display(display),
            pull_interval=pull_interval,
            listen=listen or None,
        )
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise click.UsageError(f"{option}: {first['msg']} (got {first['input']!r})") from None

    async def serve() -> None:
        await Daemon(config).run()

    asyncio.run(serve())


@cli.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--json", "as_json", is_flag=True, help="Print verdicts as JSON lines.")
def replay(path: Path, as_json: bool) -> None:
    """Judge recorded records again: PATH is a job's output, a records directory or a file.

    \b
    Example:
      tracecore replay tracecore-runs/demo
    """
    from tracecore_sidecar.render import render_text
    from tracecore_sidecar.replay import replay_path, verdict_json

    num_verdicts = 0
    for item in replay_path(path):
        if item.event.change == "closed":
            continue
        num_verdicts += 1
        if as_json:
            click.echo(json.dumps(verdict_json(item)))
        else:
            text = render_text(
                item.event.verdict,
                now_ns=item.event.now_ns,
                wall_offset_ns=item.wall_offset_ns,
            )
            click.echo(text + "\n")
    if num_verdicts == 0 and not as_json:
        click.echo("no verdicts in this recording")
