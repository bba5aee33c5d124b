"""A job so small that it only proves the path: one rank, a few steps, then it waits to be let go.

``tracecore doctor`` runs it as ``python -m tracecore_train.trial`` with the variables of a rank and
reads what the sidecar got to know. It says on standard output, one JSON object a line, how far it
came, and goes on as far as it can: without torch it still introduces itself.
"""

from __future__ import annotations

import io
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import tracecore_train

if TYPE_CHECKING:
    from collections.abc import Iterator

NUM_STEPS = 4
NUM_LEFT = 2
"""Batches nobody takes: the loader stays, and its queue can be looked at."""
MAX_ERROR = 300


def main() -> int:
    """Run until standard input ends."""
    with tempfile.TemporaryDirectory() as directory:
        alive: object = None
        session = tracecore_train.init(flush_interval=0.2)
        try:
            alive = _train(Path(directory) / "store")
            _say(launcher=_why_no_launcher())
        except ImportError as error:
            _say(torch_error=str(error)[:MAX_ERROR])
        except Exception as error:  # noqa: BLE001  (whatever torch does is a finding)
            _say(error=f"{type(error).__name__}: {error}"[:MAX_ERROR])
        _say(is_recording=session.is_active, is_ready=True)
        sys.stdin.read()
        del alive
        tracecore_train.shutdown()
    return 0


def _train(store: Path) -> Iterator[object]:
    """Train, and give what must stay alive."""
    import torch

    _say(torch=str(torch.__version__))
    dist = torch.distributed
    if dist.is_available():
        dist.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = torch.utils.data.TensorDataset(torch.ones(NUM_STEPS + NUM_LEFT, 4))
    batches = iter(torch.utils.data.DataLoader(rows, batch_size=1, num_workers=1))
    for (batch,) in itertools.islice(batches, NUM_STEPS):
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if dist.is_available():
            dist.all_reduce(torch.ones(1))
        optimizer.step()
    torch.save(model.state_dict(), io.BytesIO())
    return batches


def _why_no_launcher() -> str:
    """Say why `tracecore run` could not watch the workers with this torch; empty: it could."""
    try:
        from torch.distributed.elastic.agent.server import local_elastic_agent
    except ImportError as error:
        return f"torchrun cannot be imported ({error})"
    if hasattr(local_elastic_agent.LocalElasticAgent, "_start_workers"):
        return ""
    return "this torch has no LocalElasticAgent._start_workers"


def _say(**values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
