"""A rank that ends in the way its first argument names."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

import tracecore_train

HOW = sys.argv[1]


def foreign(kind: Any, error: Any, traceback: Any) -> None:
    """Print like a tool that chains to nobody."""
    print(f"foreign saw {kind.__name__}", file=sys.stderr)


def chaining(original: Any) -> Any:
    """Make a hook that calls on, as most tools do."""

    def hook(kind: Any, error: Any, traceback: Any) -> None:
        print(f"foreign saw {kind.__name__}", file=sys.stderr)
        original(kind, error, traceback)

    return hook


def fail(argument: object = "boom") -> None:
    raise ValueError(argument)


class UntellableError(ValueError):
    """Running its text would be running the user's code while the process dies."""

    def __str__(self) -> str:
        os._exit(99)


if HOW == "below":
    sys.excepthook = chaining(sys.excepthook)
session = tracecore_train.init(flush_interval=0.1, hooks=os.environ.get("HOOKS") or None)
assert session.is_active
if HOW == "above":
    sys.excepthook = chaining(sys.excepthook)
elif HOW == "replaced":
    sys.excepthook = foreign
tracecore_train.step()


@record
def recorded() -> None:
    fail()


def in_thread() -> None:
    thread = threading.Thread(target=fail, name="helper")
    thread.start()
    thread.join()


def printed() -> None:
    try:
        fail()
    except ValueError:
        sys.excepthook(*sys.exc_info())


def in_finally() -> None:
    try:
        fail()
    finally:
        tracecore_train.shutdown()


def distributed() -> None:
    for call in (
        lambda: dist.init_process_group("gloo", init_method="file:///nowhere/at/all", rank=0),
        lambda: dist.all_reduce(torch.ones(1)),
        lambda: dist.new_group([0]),
    ):
        with contextlib.suppress(RuntimeError, ValueError):
            call()


def blocked_at_exit() -> None:
    """Raise while a thread that is no daemon keeps the process."""
    threading.Thread(target=time.sleep, args=(60,)).start()
    fail()


def interrupted() -> None:
    # Modules that are still being imported beside would change Python's own exit status.
    time.sleep(1)
    # What runs in the background of a shell inherits that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)


def forked() -> None:
    if os.fork() == 0:
        fail()
    os.wait()


ENDS: dict[str, Any] = {
    "above": fail,
    "below": fail,
    "replaced": fail,
    "recorded": recorded,
    "thread": in_thread,
    "printed": printed,
    "finally": in_finally,
    "distributed": distributed,
    "blocked": blocked_at_exit,
    "forked": forked,
    "tensor": lambda: fail(torch.arange(3)),
    "interrupt": interrupted,
    "os_exit": lambda: os._exit(5),
}
atexit.register(lambda: print("at exit", flush=True))
if HOW == "untellable":
    raise UntellableError
ENDS[HOW]()
