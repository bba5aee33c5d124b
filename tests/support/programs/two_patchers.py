"""We and somebody else patch the same three calls, and leave in either order.

Each argument is an order: who patches first, who second, who leaves first. Prints JSON by order:
whether every call gave what it gives without both, and what is left after both are gone.
"""

from __future__ import annotations

import functools
import io
import json
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

import tracecore_train

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS: list[tuple[Any, str]] = [
    (torch, "save"),
    (_BaseDataLoaderIter, "__next__"),
    (GradScaler, "step"),
]
ORIGINALS = [getattr(owner, name) for owner, name in POINTS]
num_their_calls = 0


class Theirs:
    """Wraps and restores the way most tools do: without looking who came since."""

    def patch(self) -> None:
        self.replaced = [getattr(owner, name) for owner, name in POINTS]
        for (owner, name), original in zip(POINTS, self.replaced, strict=True):
            setattr(owner, name, self.wrap(original))

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            global num_their_calls
            num_their_calls += 1
            return original(*args, **kwargs)

        return wrapper

    def leave(self) -> None:
        for (owner, name), original in zip(POINTS, self.replaced, strict=True):
            setattr(owner, name, original)


class Ours:
    def patch(self) -> None:
        tracecore_train.init(flush_interval=0.1)

    def leave(self) -> None:
        tracecore_train.shutdown()


def use() -> list[object]:
    """Take two batches, save, and step once by a scaler; give what came of it."""
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    scaler = GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(1))
    scaler.step(optimizer)
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    buffer.seek(0)
    batches = [batch.tolist() for batch in DataLoader(range(4), batch_size=2)]  # type: ignore[arg-type]
    return [float(parameter.detach()), torch.load(buffer), batches]


def run(first: str, second: str, leaves_first: str) -> dict[str, object]:
    """Play one order and say what came of it."""
    parties: dict[str, Any] = {"ours": Ours(), "theirs": Theirs()}
    parties[first].patch()
    parties[second].patch()
    results = [use()]
    parties[leaves_first].leave()
    results.append(use())
    num_before = num_their_calls
    parties["theirs" if leaves_first == "ours" else "ours"].leave()
    results.append(use())
    return {
        "same": all(result == PLAIN for result in results),
        "num_their_calls_after": num_their_calls - num_before,
        "is_clean": all(
            getattr(owner, name) is original
            for (owner, name), original in zip(POINTS, ORIGINALS, strict=True)
        ),
    }


PLAIN = use()
print(json.dumps({order: run(*order.split()) for order in sys.argv[1:]}))
