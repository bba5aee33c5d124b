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
        from tracecore_sidecar.on_hang.choice import parse_on_hang

        return run_main(arguments[1:], check_on_hang=parse_on_hang)
    try:
        # What a command raised as click's Exit comes back as its code.
        exit_code = cli.main(arguments, prog_name="tracecore", standalone_mode=False)
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
    return int(exit_code or 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tracecore")
def cli() -> None:
    """Say what broke in a distributed PyTorch run: which rank, where, why, at what cost.

    \b
    Examples:
      tracecore run --nproc-per-node 8 train.py --lr 3e-4
      tracecore replay tracecore-runs/20260101-120000-ab12
      tracecore doctor
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
    "--nccl-pull",
    envvar="TRACECORE_NCCL_PULL",
    type=click.Choice(["never", "on-suspicion"]),
    default="never",
    show_default=True,
    help="Whether the flight recorder of legacy NCCL may be read, and its RAS service asked, when a"
    " hang is suspected.",
)
@click.option(
    "--listen",
    envvar="TRACECORE_LISTEN",
    default=None,
    metavar="ADDRESS",
    help="Take OTLP over loopback TCP too: 127.0.0.1:4318. Default: TRACECORE_LISTEN, or none.",
)
@click.option(
    "--on-hang",
    envvar="TRACECORE_ON_HANG",
    default="report",
    show_default=True,
    metavar="ACTION",
    help="What follows a hang, once its bundle is in place: report, dump, abort, or a command "
    "line that gets the bundle's path. Default: TRACECORE_ON_HANG, or report.",
)
@click.option("--parent-pid", type=int, default=None, hidden=True)
def sidecar(
    job_id: str | None,
    job_dir: Path | None,
    output: Path | None,
    node_rank: int,
    display: str,
    pull_interval: float,
    nccl_pull: str,
    listen: str | None,
    on_hang: str,
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
    from tracecore_sidecar.pull_policy import NcclPull
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
            nccl_pull=NcclPull(nccl_pull),
            listen=listen or None,
            on_hang=on_hang,
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


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.option(
    "--timeout",
    type=click.FloatRange(5, 600),
    default=60.0,
    show_default=True,
    help="Seconds the sidecar and the rank of the trial may take to start.",
)
def doctor(as_json: bool, timeout: float) -> None:
    """Say what can be seen on this machine with this torch, and how to see more.

    Runs a job of one rank beside a sidecar for some seconds, looks at what the node shows, and
    prints each signal as measured, blind (with the reason) or off, with the way to open it. Run
    it where the job will run: in its container, as its user, with its environment.

    Exit code 0 even with blind spots; 1 where the path from a rank to the sidecar does not work.

    \b
    Examples:
      tracecore doctor
      tracecore doctor --json | jq '.signals[] | select(.state == "blind")'
      srun --nodes 2 --ntasks-per-node 1 tracecore doctor
    """
    from tracecore_sidecar.doctor.command import examine

    answer, exit_code = examine(
        as_json=as_json, timeout_s=timeout, tell=lambda text: click.echo(text, err=True)
    )
    click.echo(answer)
    raise click.exceptions.Exit(exit_code)


@cli.command()
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="PATH...",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON object.")
def diagnose(paths: tuple[Path, ...], as_json: bool) -> None:
    """Say what hung, from evidence you already have: files or directories, known by content.

    Flight recorder dumps of torch (pickle or JSON, gzip or not, any subset of ranks), our own
    output and bundles, and training logs.

    \b
    Examples:
      tracecore diagnose /tmp/nccl_trace_rank_* train.log
      tracecore diagnose --json /shared/dumps/ > answer.json
      tracecore diagnose tracecore-runs/7/0/bundles/50d40d53f520/
    """
    from tracecore_sidecar.offline.diagnose import diagnose_paths
    from tracecore_sidecar.offline.text import answer_text

    answer = diagnose_paths(paths)
    click.echo(json.dumps(answer.to_json()) if as_json else answer_text(answer))
    if not any(item.status == "read" for item in answer.inputs):
        raise click.exceptions.Exit(1)
