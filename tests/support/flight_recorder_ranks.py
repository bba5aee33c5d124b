"""Real gloo ranks with worker servers, started and steered by a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

PROGRAM = Path(__file__).parent / "programs" / "flight_recorder_rank.py"


class FlightRecorderRanks:
    """``world_size`` processes; leaving the context kills them."""

    def __init__(self, directory: Path, world_size: int) -> None:
        """Start them; :meth:`__enter__` waits until they are ready."""
        self._sockets = [directory / f"r{rank}.ws" for rank in range(world_size)]
        self.processes = [
            subprocess.Popen(
                [
                    *(sys.executable, str(PROGRAM), str(directory / "store")),
                    *(str(rank), str(world_size), str(socket)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # Torch 2.10 has its recorder off by default; our hook does the same in a job.
                env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_FR_BUFFER_SIZE": "2000"},
            )
            for rank, socket in enumerate(self._sockets)
        ]

    def __enter__(self) -> FlightRecorderRanks:
        """Wait until every rank has its group and its server."""
        try:
            for rank in range(len(self.processes)):
                self._wait(rank)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Kill what is left."""
        self._stop()

    def socket(self, rank: int) -> Path:
        """Give the path of a rank's worker server."""
        return self._sockets[rank]

    def pid(self, rank: int) -> int:
        """Give a rank's process id."""
        return self.processes[rank].pid

    def command(self, text: str, *ranks: int) -> None:
        """Send a command to ranks (all, where none is named) and wait until it is done."""
        chosen = ranks or tuple(range(len(self.processes)))
        for rank in chosen:
            self.send(text, rank)
        for rank in chosen:
            self._wait(rank)

    def send(self, text: str, rank: int) -> None:
        """Send a command and do not wait."""
        stdin = self.processes[rank].stdin
        assert stdin is not None
        stdin.write(text + "\n")
        stdin.flush()

    def _wait(self, rank: int) -> None:
        stdout = self.processes[rank].stdout
        assert stdout is not None
        # Gloo of torch 2.8 and 2.10 writes to standard output too.
        assert any(line == "done\n" for line in iter(stdout.readline, "")), f"rank {rank} failed"

    def _stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.send_signal(signal.SIGCONT)
        for process in self.processes:
            process.communicate(timeout=60)
