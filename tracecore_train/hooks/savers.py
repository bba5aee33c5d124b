"""The calls that save a checkpoint, by the module they live in.

A saver is found through ``sys.modules``: nothing is imported for it. What a script imports later
is patched by the export thread within a second (see ``checkpoint.py``), long before a first save.
A name that a script imported from its module before that (``from ... import save``) is the
unpatched function; where one exists, a function that it calls is patched too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Saver:
    """One function or method that saves."""

    module: str
    name: str
    """Attribute of the module, ``function`` or ``Class.method``."""
    call: str
    """As records name it."""
    path: tuple[int, str] = (-1, "")
    """Place and name of the argument that is, or may be, the path of the one file it writes."""
    is_distributed: bool = False
    """It writes with threads of its own, whose calls are parts of it."""
    is_async: bool = False
    """It gives a future, and goes on when it returned."""


_DCP = "torch.distributed.checkpoint"
_LIGHTNING = ("lightning.fabric", "lightning_fabric")

SAVERS = (
    Saver(module="torch", name="save", call="torch.save", path=(1, "f")),
    Saver(module="torch.serialization", name="save", call="torch.save", path=(1, "f")),
    *(
        Saver(
            module=module,
            name=name,
            call=f"{_DCP}.{name}",
            is_distributed=True,
            is_async=name == "async_save",
        )
        for module in (_DCP, f"{_DCP}.state_dict_saver")
        for name in ("save", "async_save")
    ),
    # What save and save_state_dict call, also where a script holds them by their own name.
    Saver(
        module=f"{_DCP}.state_dict_saver",
        name="_save_state_dict",
        call=f"{_DCP}.save",
        is_distributed=True,
    ),
    # The writer, and not Trainer.save_checkpoint: that ends with a barrier of all ranks, and the
    # ranks that wait there save nothing. It writes the file after torch.save has filled a buffer.
    *(
        Saver(
            module=f"{package}.plugins.io.torch_io",
            name="TorchCheckpointIO.save_checkpoint",
            call="lightning TorchCheckpointIO.save_checkpoint",
            path=(2, "path"),
        )
        for package in _LIGHTNING
    ),
    # The model as safetensors, which is no torch.save, then optimizer and scheduler.
    Saver(
        module="transformers.trainer",
        name="Trainer._save_checkpoint",
        call="transformers Trainer._save_checkpoint",
    ),
    Saver(
        module="transformers.modeling_utils",
        name="PreTrainedModel.save_pretrained",
        call="transformers PreTrainedModel.save_pretrained",
    ),
)
"""Every saver we know; a module or name that is not there is left out."""


def target_of(saver: Saver) -> tuple[Any, str] | None:
    """Give the object and the attribute to patch; None while there is none.

    A module that is still being imported is none yet.
    """
    module = sys.modules.get(saver.module)
    spec = getattr(module, "__spec__", None)
    if module is None or getattr(spec, "_initializing", False):
        return None
    owner: Any = module
    *classes, name = saver.name.split(".")
    for part in classes:
        # Through the module's own names: a lazy module must not be made to import.
        owner = vars(owner).get(part)
        if owner is None:
            return None
    return (owner, name) if name in vars(owner) else None
