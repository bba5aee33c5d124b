"""Two epochs on two ranks of gloo: NAMESPACE DIRECTORY. Says which ranks had which loss."""

from __future__ import annotations

import importlib
import sys
import warnings

from tests.support.lightning_parts import QUIET, make_loader, make_module
from tracecore_integrations.lightning import TraceCoreCallback

warnings.simplefilter("ignore")
namespace, directory = sys.argv[1:]
trainer = importlib.import_module(namespace).Trainer(
    **QUIET,
    devices=2,
    strategy="ddp",
    max_epochs=2,
    accumulate_grad_batches=2,
    default_root_dir=directory,
    callbacks=[TraceCoreCallback()],
)
trainer.fit(make_module(namespace), make_loader(16), make_loader(8))
print(f"rank {trainer.global_rank} ended at step {trainer.global_step}", flush=True)
