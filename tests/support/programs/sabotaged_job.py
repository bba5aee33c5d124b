"""The short job, with the parts of us that SABOTAGE names made to raise.

SABOTAGE is a comma separated list of ``module:Class.method``; each raises ``RuntimeError``.
"""

import importlib
import os
import runpy
from pathlib import Path
from typing import NoReturn


def _break(spec: str) -> None:
    module_name, _, names = spec.partition(":")
    owner_name, _, method = names.partition(".")
    owner = getattr(importlib.import_module(module_name), owner_name)

    def broken(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(f"sabotaged {method}")

    setattr(owner, method, broken)


for part in os.environ["SABOTAGE"].split(","):
    _break(part)
if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("short_job.py")), run_name="__main__")
