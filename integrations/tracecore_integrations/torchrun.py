"""`tracecore run`: torchrun with a sidecar beside it.

torchrun runs in this very process (``torch.distributed.run.main``), with every option, stream,
signal and exit code as it has them; ``attachment.py`` is what runs beside it.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tracecore_integrations.attachment import attached, say
from tracecore_integrations.job_identity import identify_job
from tracecore_integrations.launch_options import HELP, misplaced, parse_options
from tracecore_train.config import load_config
from tracecore_train.errors import ConfigError
from tracecore_train.faults import parse_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tracecore_integrations.launch_options import LaunchOptions
    from tracecore_train.config import Config

USAGE_EXIT_CODE = 2
_DISABLE = "TRACECORE_DISABLE"
_ON_HANG = "TRACECORE_ON_HANG"


def main(argv: Sequence[str], *, check_on_hang: Callable[[str], object] | None = None) -> int:
    """Run ``tracecore run ARGV`` and give its exit code: torchrun's, or 2 for a usage error.

    ``check_on_hang`` raises :class:`ConfigError` where ``--on-hang`` has a value that the sidecar
    would not take.
    """
    try:
        options, torchrun_argv = parse_options(argv)
        if options.is_help:
            sys.stdout.write(HELP)
            return 0
        config = _checked_config(options)
        on_hang = options.on_hang or os.environ.get(_ON_HANG) or None
        if on_hang is not None and check_on_hang is not None and not config.disable:
            _check(check_on_hang, on_hang, "--on-hang" if options.on_hang else _ON_HANG)
    except ConfigError as error:
        say(str(error))
        return USAGE_EXIT_CODE
    try:
        from torch.distributed import run as torchrun
    except ImportError as error:
        say(f"`tracecore run` starts torchrun, which needs torch: {error}")
        return USAGE_EXIT_CODE
    with _torchrun_argv(torchrun_argv):
        if config.disable:
            exit_code = _run_torchrun(torchrun, torchrun_argv)
        else:
            exit_code = _run_attached(torchrun, torchrun_argv, options, config, on_hang)
    if exit_code == -signal.SIGINT:
        # What Python does with a Ctrl-C nobody handles: die of the signal, so that shells see it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return exit_code


def _checked_config(options: LaunchOptions) -> Config:
    """Check the settings before anything starts; with TRACECORE_DISABLE nothing else counts."""
    switch = load_config(environ={_DISABLE: os.environ.get(_DISABLE, "")})
    if switch.disable:
        return switch
    faults = [os.environ.get("TRACECORE_FAULT", ""), *options.faults]
    text = ";".join(fault for fault in faults if fault.strip())
    config = load_config({"job_id": options.job_id, "fault": text or None})
    if config.fault is not None:
        parse_faults(config.fault)
    return config


def _check(check: Callable[[str], object], value: str, where: str) -> None:
    try:
        check(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _run_attached(
    torchrun: Any,
    argv: list[str],
    options: LaunchOptions,
    config: Config,
    on_hang: str | None,
) -> int:
    try:
        # Once before anything of ours starts: --help and usage errors end here.
        torchrun_args = torchrun.parse_args(argv)
    except SystemExit as error:
        token = misplaced(argv) if error.code else None
        if token is not None:
            say(f"{token} is an option of tracecore run and stands before torchrun's options")
        return _exit_code(error)
    job = identify_job(config.job_id, torchrun_args, os.environ)
    with attached(
        job,
        output=options.output,
        is_quiet=options.is_quiet,
        fault=config.fault,
        on_hang=on_hang,
    ):
        return _run_torchrun(torchrun, argv)


def _run_torchrun(torchrun: Any, argv: list[str]) -> int:
    """Run torchrun and give the exit code its own command would have ended with."""
    try:
        torchrun.main(argv)
    except SystemExit as error:
        return _exit_code(error)
    except KeyboardInterrupt as error:
        _show(error)
        return -signal.SIGINT
    except Exception as error:  # noqa: BLE001  (shown as Python would show it, then exit code 1)
        _show(error)
        return 1
    return 0


def _show(error: BaseException) -> None:
    """Print an uncaught exception as it looks without our frame around torchrun's."""
    if error.__traceback__ is not None:
        error = error.with_traceback(error.__traceback__.tb_next)
    sys.excepthook(type(error), error, error.__traceback__)


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    sys.stderr.write(f"{error.code}\n")
    return 1


@contextmanager
def _torchrun_argv(argv: list[str]) -> Iterator[None]:
    """Let torchrun's usage messages speak of torchrun."""
    before = sys.argv
    sys.argv = ["torchrun", *argv]
    try:
        yield
    finally:
        sys.argv = before
