"""What a Python stack, taken from outside, says about a rank.

Frames read ``function (file:line)``, innermost first. Paths are often shortened to what follows
the import path, as in ``torch/nn/modules/module.py`` or ``threading.py``.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracecore_train.wire.records import StackRecord

_FRAME = re.compile(r"(?P<function>.*) \((?P<file>[^()]*?)(:\d+)?\)\Z")
_OURS_OR_TORCH = re.compile(
    r"(^|/)(torch|tracecore_train|tracecore_sidecar|tracecore_integrations)/|^<"
)
_STANDARD_LIBRARY = re.compile(r"/lib/python3[^/]*/(?!site-packages|dist-packages)")
_RENDEZVOUS = frozenset(
    {"init_process_group", "new_group", "split_group", "_new_process_group_helper"}
    | {"_store_based_barrier", "rendezvous", "_create_c10d_store", "next_rendezvous"}
)
_COMPILER = re.compile(r"(^|/)(torch/_dynamo|torch/_inductor|torch/_functorch|triton)/")
_DEBUGGER = re.compile(r"(^|/)(pdb|bdb|ipdb|pudb|debugpy|pydevd)(/|\.py|\Z)")
_PEER_WAIT = re.compile(r"(^|_)(i?send|i?recv|p2p|barrier|communicate)(_|$)|^wait$")


def first_frame(stack: StackRecord) -> str:
    """Give the innermost frame."""
    return stack.frames[0] if stack.frames else ""


def user_frames(stack: StackRecord) -> tuple[str, ...]:
    """Give the frames of the user's own or third-party code, innermost first."""
    return tuple(f for f in stack.frames if not _is_plumbing(_file(f)))


def top_frame(stack: StackRecord) -> str:
    """Give the innermost frame of the user's own or third-party code, else the innermost."""
    return (*user_frames(stack), first_frame(stack))[0]


def _file(frame: str) -> str:
    match = _FRAME.match(frame)
    return match["file"] if match else ""


def _function(frame: str) -> str:
    match = _FRAME.match(frame)
    return match["function"] if match else frame


def _is_standard_library(file: str) -> bool:
    if "/" in file and file.startswith("/"):
        return bool(_STANDARD_LIBRARY.search(file))
    return file.partition("/")[0].removesuffix(".py") in sys.stdlib_module_names


def _is_plumbing(file: str) -> bool:
    return bool(_OURS_OR_TORCH.search(file)) or _is_standard_library(file)


def is_saving(stack: StackRecord) -> bool:
    """Say whether a checkpoint is being written, whatever writes it."""
    for frame in stack.frames:
        function, file = _function(frame), _file(frame)
        if function.lstrip("_").startswith("save") or "torch/distributed/checkpoint" in file:
            return True
    return False


def waits_for_peer(stack: StackRecord) -> bool:
    """Say whether the innermost code is communication the flight recorder does not hold."""
    for frame in stack.frames:
        function, file = _function(frame), _file(frame)
        if "torch/distributed/" in file:
            return True
        if not _is_standard_library(file):
            return bool(_PEER_WAIT.search(function))
    return False


def is_in_rendezvous(stack: StackRecord) -> bool:
    """Say whether it waits for other ranks in the making of a process group."""
    return any(
        _function(frame) in _RENDEZVOUS and "torch/distributed/" in _file(frame)
        for frame in stack.frames
    )


def is_compiling(stack: StackRecord) -> bool:
    """Say whether a compiler of torch or triton is at work in it."""
    return any(_COMPILER.search(_file(frame)) for frame in stack.frames)


def is_in_debugger(stack: StackRecord) -> bool:
    """Say whether somebody holds it in a debugger."""
    return any(_DEBUGGER.search(_file(frame)) for frame in stack.frames)
