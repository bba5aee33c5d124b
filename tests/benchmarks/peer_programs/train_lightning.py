"""The same training in Lightning's loop, with or without its DeviceStatsMonitor.

train_lightning.py --steps N --results DIR --output DIR [--device-stats]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from lightning import pytorch as pl
from lightning.pytorch.callbacks import DeviceStatsMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from tests.benchmarks.peer_programs import workload


class Module(pl.LightningModule):
    """A model of the workload."""

    def __init__(self, model: nn.Module) -> None:
        """Train this model."""
        super().__init__()
        self.model = model

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Give the loss."""
        x, y = batch
        return nn.functional.mse_loss(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Give the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Clock(pl.Callback):
    """Reports to the benchmark; stands after the callback that is measured."""

    def __init__(self, report: workload.Report, part: str) -> None:
        """Report there about a part."""
        self._report = report
        self._part = part
        self._num_steps = 0

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the step."""
        self._num_steps += 1
        self._report.step()
        if self._part == "tiny":
            workload.pause(self._num_steps)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the end."""
        self._report.end(self._part)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--results", type=Path, required=True, help="what the rank used")
    parser.add_argument("--output", type=Path, required=True, help="what the logger writes")
    parser.add_argument("--device-stats", action="store_true")
    args = parser.parse_args()
    report = workload.Report(args.results)
    torch.set_num_threads(1)

    def fit(model: nn.Module, loader: workload.Loader, steps: int, clock: Clock) -> None:
        watched: list[pl.Callback] = [DeviceStatsMonitor()] if args.device_stats else []
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=int(os.environ["LOCAL_WORLD_SIZE"]),
            strategy="ddp",
            max_steps=steps,
            max_epochs=-1,
            logger=CSVLogger(str(args.output)),
            callbacks=[*watched, clock],
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Module(model), loader)

    clock = Clock(report, "normal")
    fit(workload.make_model(), workload.make_loader(), args.steps, clock)
    clock = Clock(report, "tiny")
    fit(workload.make_tiny_model(), workload.make_tiny_loader(), workload.NUM_TINY_STEPS, clock)


if __name__ == "__main__":
    main()
