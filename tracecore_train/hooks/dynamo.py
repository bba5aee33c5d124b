"""Keeps our wrappers out of the graphs that ``torch.compile`` makes.

Without this the compiler would try to trace a wrapper that is called from a compiled function,
warn about the clock it reads, and compile pieces of ours. Nothing of the compiler is imported:
it takes seconds, and most jobs do not use it.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_F = TypeVar("_F", bound="Callable[..., Any]")


def keep_out_of_graphs(function: _F) -> _F:
    """Let the compiler call ``function`` as it is, and trace what it calls as before."""
    vars(function)["_torchdynamo_disable"] = True
    frames: Any = sys.modules.get("torch._C._dynamo.eval_frame")
    code: Any = getattr(function, "__code__", None)
    # Names of the compiler's own: where they are others, it traces us and says so.
    with contextlib.suppress(AttributeError, TypeError):
        if hasattr(frames, "skip_code"):
            frames.skip_code(code)
        else:
            action, strategy = frames._FrameAction, frames._FrameExecStrategy
            frames.set_code_exec_strategy(code, strategy(action.SKIP, action.DEFAULT))
    return function
