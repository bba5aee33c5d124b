"""train_sleep.py in the first attempt; a later attempt only says that it was started."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if attempt:
    print(f"rank {os.environ['RANK']} of attempt {attempt}", flush=True)
else:
    runpy.run_path(str(Path(__file__).with_name("train_sleep.py")), run_name="__main__")
