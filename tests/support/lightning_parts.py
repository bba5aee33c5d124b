"""A module and a loader small enough to train in no time, for either Lightning namespace."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, TensorDataset

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
}
"""Arguments of a ``Trainer`` that leaves no files but checkpoints and says little."""


def make_module(namespace: str) -> Any:
    """A linear model whose steps call ``on_training`` and ``on_validation`` with the model."""
    lightning = importlib.import_module(namespace)

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 1)
            self.on_training: Callable[[Any], object] = _nothing
            self.on_validation: Callable[[Any], object] = _nothing

        def training_step(self, batch: Any, index: int) -> Any:
            self.on_training(self)
            return self.linear(batch[0]).square().mean()

        def validation_step(self, batch: Any, index: int) -> None:
            self.on_validation(self)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def _nothing(model: Any) -> None:
    pass


def make_loader(num_batches: int) -> DataLoader[Any]:
    """Batches of two rows each."""
    return DataLoader(TensorDataset(torch.ones(2 * num_batches, 4)), batch_size=2)
