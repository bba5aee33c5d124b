"""The GPT of train_gpt.py with Lightning: one line more, and the phases have names.

tracecore run --nproc-per-node 2 examples/lightning_gpt.py, or plain python, where Lightning starts
the second process itself. Needs: pip install 'tracecore-train[lightning]'
"""

import argparse
import sysconfig
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader, Subset
from train_gpt import GPT, Windows, loss_of

from tracecore_integrations.lightning import TraceCoreCallback


class LightningGPT(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.gpt = GPT()

    def training_step(self, batch, index):
        return loss_of(self.gpt, batch, self.device)

    def validation_step(self, batch, index):
        loss = loss_of(self.gpt, batch, self.device)
        self.log("held-out loss", loss, sync_dist=True, batch_size=len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="each of two microbatches")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="directory for checkpoints")
    args = parser.parse_args()
    lightning.seed_everything(1337)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    windows = Windows([path for i, path in enumerate(files) if i % 10], stride=16)
    held_out = Subset(Windows(files[::10], stride=509), range(256))
    trainer = lightning.Trainer(
        devices=args.devices,
        strategy="ddp" if args.devices > 1 else "auto",
        max_steps=args.steps,
        accumulate_grad_batches=2,
        val_check_interval=args.steps,  # microbatches: twice in all
        check_val_every_n_epoch=None,
        callbacks=[TraceCoreCallback()],
        default_root_dir=args.out,
        enable_checkpointing=args.out is not None,
        enable_progress_bar=False,
        logger=False,
    )
    model = LightningGPT()
    train_loader = DataLoader(windows, batch_size=4, shuffle=True, num_workers=1, drop_last=True)
    trainer.fit(model, train_loader, DataLoader(held_out, batch_size=32))
    if trainer.is_global_zero:
        loss = trainer.callback_metrics["held-out loss"]
        print(f"step {trainer.global_step}  held-out loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
