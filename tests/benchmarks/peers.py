"""What a user would pick instead, in the same blocks as TraceCore and as nothing.

TraceML is installed into a throwaway environment on top of the one that runs this, in which no
package that is already there may change. Lightning's DeviceStatsMonitor is compared with Lightning
without it. A peer that cannot be installed or run is a row with its reason.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import venv
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks import whole_run
from tests.benchmarks.measure import ROOT, Row, missing, row
from tests.benchmarks.whole_run import Arm, Job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

INSTALLED = ("traceml-ai",)
TRAIN_LIGHTNING = ROOT / "tests" / "benchmarks" / "peer_programs" / "train_lightning.py"
LIGHTNING = Arm(name="Lightning", program=TRAIN_LIGHTNING, baseline="Lightning", is_watched=False)
TRACEML = Arm(name="TraceML", launcher="traceml", options=("--watch", "traceml"))
OURS = "tracecore-train"
PACKAGES = (OURS, "torch", "traceml-ai", "lightning", "opentelemetry-sdk")
INSTALL_TIMEOUT_S = 300.0
CPU = next(metric for metric in whole_run.METRICS if metric.name == "tiny_us")


def arms(sink: str) -> tuple[Arm, ...]:
    """Give everything that runs in a block; the OTel SDK sends to ``sink``."""
    return (
        *whole_run.ARMS,
        TRACEML,
        Arm(name="torch.profiler", options=("--watch", "profiler")),
        Arm(
            name="OTel SDK",
            options=("--watch", "otel"),
            environ={"OTEL_EXPORTER_OTLP_ENDPOINT": sink},
        ),
        LIGHTNING,
        Arm(
            name="DeviceStatsMonitor",
            program=TRAIN_LIGHTNING,
            options=("--device-stats",),
            baseline=LIGHTNING.name,
        ),
    )


@dataclass(frozen=True)
class Setup:
    """How the runs were made, for whoever wants to make them again."""

    versions: dict[str, str]
    commands: dict[str, str]
    runs: dict[str, list[dict[str, dict[str, float]]]] = field(default_factory=dict)
    """The figures of every run by group, block and arm."""


class SideBySide:
    """The benchmark part; ``setup`` is filled in by ``measure``."""

    def __init__(self, ranks: Sequence[int], num_blocks: int | None = None) -> None:
        """Measure at these numbers of ranks."""
        self._ranks = ranks
        self._num_blocks = num_blocks
        self.setup = Setup({}, {})

    def measure(self, is_quick: bool) -> list[Row]:
        """Install the peers, run everything, print versions and commands."""
        rows = []
        with _environment() as environment, _sink() as sink:
            chosen = arms(sink)
            if environment.reason:
                chosen = tuple(arm for arm in chosen if arm is not TRACEML)
            self.setup = _setup(
                chosen,
                environment.python,
                num_ranks=self._ranks[0],
                num_steps=whole_run.steps_of(is_quick, self._ranks[0]),
            )
            for name, text in (self.setup.versions | self.setup.commands).items():
                print(f"  {name}: {text}")
            for num_ranks in self._ranks:
                group = f"peers, {num_ranks} ranks"
                num_steps = whole_run.steps_of(is_quick, num_ranks)
                num_blocks = self._num_blocks or (2 if is_quick else 12 // num_ranks)
                if environment.reason:
                    rows.append(missing(group, TRACEML.name, environment.reason))
                outcome = whole_run.run_blocks(
                    chosen, num_ranks, num_blocks, num_steps, environment.python
                )
                self.setup.runs[group] = [
                    {name: asdict(run) for name, run in block.items()} for block in outcome.blocks
                ]
                rows += whole_run.compare(group, chosen, outcome, f"{num_steps} steps")
                rows += _ours_less_theirs(group, chosen, outcome.blocks)
        return rows


def _ours_less_theirs(
    group: str, chosen: Sequence[Arm], blocks: Sequence[whole_run.Block]
) -> list[Row]:
    """Compare on the training thread what TraceCore adds with what each peer adds."""
    rows = []
    for arm in chosen:
        differences = [
            ours[0] - theirs[0]
            for block in blocks
            if (ours := whole_run.over([block], whole_run.TRACECORE, CPU))
            and (theirs := whole_run.over([block], arm, CPU))
        ]
        if arm not in (*whole_run.ARMS, LIGHTNING) and differences:
            name = f"{CPU.what}, TraceCore less {arm.name}"
            # Lightning's own steps take so much longer that only a quiet machine can tell.
            budget = 0 if arm.baseline == whole_run.NOTHING.name else None
            rows.append(row(group, name, CPU.unit, differences, budget=budget))
    return rows


@dataclass(frozen=True)
class _Environment:
    python: Path
    reason: str = ""
    """Why nothing was installed."""


@contextlib.contextmanager
def _environment() -> Iterator[_Environment]:
    """Give an environment with the peers on top of this one; every arm runs in it."""
    directory = Path(tempfile.mkdtemp(prefix="tc-peers-"))
    try:
        yield _install(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _install(directory: Path) -> _Environment:
    beneath = sysconfig.get_path("purelib")
    venv.create(directory / "venv", with_pip=False, symlinks=True)
    python = directory / "venv" / "bin" / "python"
    (own,) = (directory / "venv" / "lib").glob("python*/site-packages")
    (own / "beneath.pth").write_text(f"import site; site.addsitedir({beneath!r})\n")
    constraints = directory / "constraints.txt"
    there = {found.name: found.version for found in metadata.distributions()}
    constraints.write_text(
        "".join(f"{name}=={version}\n" for name, version in there.items() if name != OURS)
    )
    command = [
        *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"),
        *("--constraint", str(constraints), *INSTALLED),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return _Environment(python, reason=f"pip install: not done after {INSTALL_TIMEOUT_S:.0f} s")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return _Environment(python, reason=f"pip install: {' '.join(lines[-1:]) or 'failed'}")
    return _Environment(python)


def _setup(chosen: Sequence[Arm], python: Path, num_ranks: int, num_steps: int) -> Setup:
    asked = f"""
from importlib import metadata
for name in {PACKAGES!r}:
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "not-installed")
"""
    done = subprocess.run(
        [str(python), "-c", asked], capture_output=True, text=True, timeout=60, check=True
    )
    versions = dict(line.split() for line in done.stdout.splitlines())
    job = Job(
        directory=Path("DIR"),
        num_ranks=num_ranks,
        num_steps=num_steps,
        python=Path("BIN/python"),
        ports=(29_500, 29_765),
    )
    commands = {
        arm.name: shlex.join(
            [*(f"{name}={text}" for name, text in arm.environ.items()), *arm.command(job)]
        ).replace(f"{ROOT}/", "")
        for arm in chosen
    }
    return Setup(versions, commands)


class _Sink(BaseHTTPRequestHandler):
    """Takes everything, keeps nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read the body and say yes."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextlib.contextmanager
def _sink() -> Iterator[str]:
    """Serve OTLP/HTTP on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    server.daemon_threads = True
    thread = threading.Thread(target=functools.partial(server.serve_forever, 1.0), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
