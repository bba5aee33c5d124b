"""What follows a hang: only what was asked for, only to whom it belongs, only when sure."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cases import job_view, waits
from tests.support.launches import Launch
from tests.support.verdicts import event_of
from tracecore_integrations.torchrun import main as launch
from tracecore_sidecar.bundle.bundler import Bundle, BundleError
from tracecore_sidecar.on_hang.abort import Aborted, RankProcess, end_ranks
from tracecore_sidecar.on_hang.choice import Action, OnHang, parse_on_hang
from tracecore_sidecar.on_hang.command import MAX_OUTPUT_BYTES, run_command
from tracecore_sidecar.on_hang.responder import Responder
from tracecore_sidecar.pull_policy import NcclPull
from tracecore_sidecar.sources.process import read_process
from tracecore_sidecar.verdicts import Confidence
from tracecore_train.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tracecore_sidecar.bundle.case import Case

# The value.


@pytest.mark.parametrize("word", ["report", "dump", "abort"])
def test_three_words_stand_for_themselves(word: str) -> None:
    """Each is its action, and takes nothing behind it."""
    assert parse_on_hang(f" {word} ") == OnHang(action=Action(word))
    with pytest.raises(ConfigError, match="stands alone"):
        parse_on_hang(f"{word} now")


def test_a_command_gets_the_path_where_it_wants_it() -> None:
    """In place of {bundle}, also inside a word; at the end where it does not stand."""
    command = parse_on_hang("sh -c 'tar czf /x.tgz {bundle} && echo $0' --path={bundle}")
    assert command.action is Action.COMMAND
    assert command.command("/b 1")[2:] == ["tar czf /x.tgz /b 1 && echo $0", "--path=/b 1"]
    assert parse_on_hang("echo 'a b'").command("/b 1") == ["echo", "a b", "/b 1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names nothing to do"),
        ("   ", "names nothing to do"),
        ("''", "names nothing to do"),
        ("abrot", "did you mean abort"),
        ("/no/such/program {bundle}", "there is no program"),
        ("echo 'a", "cannot be split into words: No closing quotation"),
        ("command", "there is no program 'command'"),
        ("x" * 5000, "at most 4096 characters"),
    ],
)
def test_a_bad_value_is_refused_with_the_way_out(
    text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message holds the value and what is accepted."""
    monkeypatch.setenv("PATH", "/bin:/nowhere")
    with pytest.raises(ConfigError, match=said):
        parse_on_hang(text)


@pytest.mark.parametrize("is_variable", [True, False])
def test_the_launcher_refuses_a_bad_value_before_anything_starts(
    is_variable: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names where the value stood, ends with 2, and with TRACECORE_DISABLE says nothing."""
    if is_variable:
        monkeypatch.setenv("TRACECORE_ON_HANG", "abrot")
    argv = [] if is_variable else ["--on-hang", "abrot"]
    assert launch([*argv, "train.py"], check_on_hang=parse_on_hang) == 2
    where = "TRACECORE_ON_HANG" if is_variable else "--on-hang"
    assert f"tracecore: {where}: 'abrot': there is no program" in capsys.readouterr().err


def test_the_launcher_hands_the_value_to_the_sidecar(tmp_path: Path) -> None:
    """As one word, whatever is in it; without the option the sidecar reads the variable itself."""
    given = Launch(tmp_path)
    script = given.script("print('trained')")
    value = "sh -c 'echo {bundle}; ls'"
    ended = given.run("--on-hang", value, "--nproc-per-node", "1", str(script))
    assert ended.returncode == 0, ended.stderr
    assert given.sidecar["options"]["--on-hang"] == value


def test_the_sidecar_refuses_a_bad_value() -> None:
    """By hand the same words hold as under the launcher."""
    done = subprocess.run(
        [sys.executable, "-m", "tracecore_sidecar", "sidecar", "--on-hang", "abrot"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "--on-hang" in done.stderr
    assert "did you mean abort" in done.stderr.replace("\n", " ")


# The command.


def test_a_command_runs_without_a_shell_and_its_end_is_known() -> None:
    """Arguments arrive as they are; exit code and both streams come back."""
    program = "import sys; print(sys.argv[1]); print('err', file=sys.stderr); sys.exit(4)"
    end = asyncio.run(run_command([sys.executable, "-c", program, "$HOME; rm *"]))
    assert (end.exit_code, end.is_late) == (4, False)
    assert sorted(end.output.split("\n")) == ["", "$HOME; rm *", "err"]
    assert end.text == f"{sys.executable} ended with exit code 4"
    assert "rm" not in end.text


def test_a_command_that_stays_is_ended_with_its_children() -> None:
    """SIGTERM and then SIGKILL go to its whole session."""
    program = (
        "import signal, subprocess, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(subprocess.Popen(['sleep', '600']).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    end = asyncio.run(run_command([sys.executable, "-c", program], timeout_s=3.0))
    assert (end.is_late, end.exit_code) == (True, -9)
    assert "was ended after" in end.text
    child = int(end.output)
    wait_for(lambda: read_process(0, child, 0).state in {"-", "Z"})


def test_a_child_that_keeps_the_output_open_is_not_waited_for() -> None:
    """The end of the command counts, not that of what it put into the background."""
    started = time.monotonic()
    end = asyncio.run(run_command(["sh", "-c", "sleep 30 & echo done"], timeout_s=25.0))
    assert (end.exit_code, end.output) == (0, "done\n")
    assert time.monotonic() - started < 20


def test_output_is_bounded() -> None:
    """A command that floods its output ends all the same, with the beginning kept."""
    end = asyncio.run(run_command([sys.executable, "-c", "print('x' * 1_000_000)"]))
    assert (end.exit_code, len(end.output)) == (0, MAX_OUTPUT_BYTES)


def test_a_command_that_cannot_start_says_why() -> None:
    """It was checked when the job began, and may be gone by now."""
    end = asyncio.run(run_command(["/no/such"]))
    assert end.text == "/no/such could not be started: No such file or directory"


# Ending ranks.

_RANK = """
import signal, sys, time
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., RankProcess]]:
    """Start a process as a rank; whatever is left is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(rank: int, kind: str = "plain") -> RankProcess:
        process = subprocess.Popen(
            [sys.executable, "-c", _RANK, kind], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        ticks = read_process(rank, process.pid, 0).start_ticks
        return RankProcess(rank=rank, pid=process.pid, start_ticks=ticks)

    yield begin
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def end(*processes: RankProcess) -> Aborted:
    return asyncio.run(end_ranks(processes, grace_s=2.0))


def state(process: RankProcess) -> str:
    return read_process(0, process.pid, 0).state


def test_ranks_end_by_the_mildest_signal_that_works(start: Callable[..., RankProcess]) -> None:
    """SIGTERM for those that act on it, a stopped one among them; SIGKILL for the deaf."""
    plain, stopped, deaf = start(0), start(1), start(2, "deaf")
    subprocess.run(["kill", "-STOP", str(stopped.pid)], check=True)
    wait_for(lambda: state(stopped) == "T")
    aborted = end(plain, stopped, deaf)
    assert aborted.ended == {0: "SIGTERM", 1: "SIGTERM", 2: "SIGKILL"}
    assert aborted.spared == {}
    assert {state(process) for process in (plain, stopped, deaf)} == {"Z"}


def test_only_the_process_that_introduced_itself_is_ended(
    start: Callable[..., RankProcess],
) -> None:
    """Another start time under the same pid, an unknown one and a gone one get no signal."""
    alive = start(0)
    again = RankProcess(rank=0, pid=alive.pid, start_ticks=alive.start_ticks + 1)
    unknown = RankProcess(rank=1, pid=alive.pid, start_ticks=0)
    init = RankProcess(rank=2, pid=1, start_ticks=1)
    gone = RankProcess(rank=3, pid=2**22 - 1, start_ticks=5)
    aborted = end(again, unknown, init, gone)
    assert aborted.ended == {}
    assert "another process" in aborted.spared[0]
    assert "never introduced itself" in aborted.spared[1]
    assert "never introduced itself" in aborted.spared[2]
    assert "has ended already" in aborted.spared[3]
    assert state(alive) in {"R", "S"}


# From an incident to the action.


class FakeBundler:
    """Gives a bundle at once, or the reason why there is none."""

    def __init__(self, path: Path, error: str = "", give_up_wall_ns: int | None = None) -> None:
        self.path = path
        self.error = error
        self.give_up_wall_ns = give_up_wall_ns
        self.cases: list[Case] = []
        path.mkdir(parents=True, exist_ok=True)

    async def make(self, case: Case) -> Bundle:
        self.cases.append(case)
        if self.error:
            raise BundleError(self.error)
        return Bundle(
            path=self.path,
            num_bytes=2048,
            num_missing=1,
            has_all_dumps=False,
            give_up_wall_ns=self.give_up_wall_ns,
        )


class Scene:
    """A responder with what it told."""

    def __init__(self, tmp_path: Path, on_hang: str, **settings: Any) -> None:
        self.told: list[str] = []
        self.bundler = FakeBundler(tmp_path / "bundles" / "c0ffee", **settings)
        self.responder = Responder(
            parse_on_hang(on_hang),
            self.bundler,  # type: ignore[arg-type]
            job_dir=tmp_path,
            output=tmp_path,
            wall_offset_ns=0,
            nccl_pull=NcclPull.NEVER,
            tell=self.told.append,
        )

    async def settle(self) -> None:
        for _ in range(3_000):
            if not self.responder.num_pending:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("still under way")

    @property
    def note(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.bundler.path / "on_hang.json").read_text())
        return found


def test_an_attempt_ends_only_while_a_full_verdict_holds(
    tmp_path: Path, start: Callable[..., RankProcess]
) -> None:
    """Not before the next tick, not on a partial verdict, and then at once; the gain is told."""
    first, second = start(0), start(1)
    view = job_view({p.rank: (p.pid, p.start_ticks) for p in (first, second)}, world_size=2)
    full = waits(0)
    partial = replace(full, confidence=Confidence.PARTIAL)
    scene = Scene(tmp_path, "abort", give_up_wall_ns=time.monotonic_ns() + 100 * 10**9)

    async def run() -> None:
        scene.responder.on_event(event_of(partial), view)
        await scene.settle()
        for _ in range(3):
            scene.responder.on_tick([partial], 0)
            await scene.settle()
        assert {state(first), state(second)} <= {"R", "S"}
        scene.responder.on_tick([full], 0)
        await scene.settle()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert {state(first), state(second)} == {"Z"}
    texts = "\n".join(scene.told)
    assert texts.count("only one of full confidence ends an attempt") == 1
    assert "ending attempt 0: 100 s before torch's own timeout would have" in texts
    assert "ended rank 1 (SIGTERM), rank 0 (SIGTERM)" in texts
    assert scene.note["ended"] == {"0": "SIGTERM", "1": "SIGTERM"}
    assert scene.note["seconds_saved"] == pytest.approx(100, abs=25)


def test_a_job_that_moves_again_is_not_ended(
    tmp_path: Path, start: Callable[..., RankProcess]
) -> None:
    """Closed, over, or another attempt: nobody gets a signal."""
    alive = start(0)
    view = job_view({0: (alive.pid, alive.start_ticks)}, world_size=1)

    async def run() -> None:
        for closing in (True, False):
            scene = Scene(tmp_path, "abort")
            scene.responder.on_event(event_of(waits(0)), view)
            await scene.settle()
            scene.responder.on_tick([], 0)
            if closing:
                scene.responder.on_event(event_of(waits(0), "closed"), view)
                assert scene.told[-1].endswith("the job moves again")
            else:
                scene.responder.on_tick([waits(0)], 1)
            scene.responder.on_tick([waits(0)], 0)
            await scene.settle()
            assert not (scene.bundler.path / "on_hang.json").exists()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert state(alive) in {"R", "S"}


@pytest.mark.parametrize("on_hang", ["abort", "dump", "echo"])
def test_without_a_bundle_nothing_is_done(tmp_path: Path, on_hang: str) -> None:
    """The reason is told with what does not happen."""
    scene = Scene(tmp_path, on_hang, error="disk full")

    async def run() -> None:
        scene.responder.on_event(event_of(waits(0)), job_view({0: (2**22 - 1, 9)}))
        await scene.settle()
        scene.responder.on_tick([waits(0)], 0)
        await scene.settle()

    asyncio.run(asyncio.wait_for(run(), 30))
    action = "command" if on_hang == "echo" else on_hang
    assert scene.told == [f"Bundle   none: disk full; without one, no {action}"]


def test_a_command_is_run_once_for_each_hang(tmp_path: Path) -> None:
    """An update of the incident runs nothing again; other patterns run nothing at all."""
    scene = Scene(tmp_path, "echo called {bundle}")
    view = job_view({0: (2**22 - 1, 9)})
    straggler = replace(waits(0), pattern="straggler")

    async def run() -> None:
        scene.responder.on_event(event_of(straggler), view)
        scene.responder.on_event(event_of(waits(0)), view)
        scene.responder.on_event(event_of(waits(0), "updated"), view)
        await scene.settle()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert len(scene.bundler.cases) == 1
    assert scene.told == [
        f"Bundle   {scene.bundler.path}/ (hang, 2 KiB, 1 thing missing)",
        "On hang  echo ended with exit code 0",
    ]
    assert scene.note["output"] == f"called {scene.bundler.path}\n"
    assert "called" not in scene.note["program"]


def test_troubles_at_once_make_a_bounded_number_of_bundles(tmp_path: Path) -> None:
    """The rest is told by its verdicts alone."""
    scene = Scene(tmp_path, "report")

    async def run() -> None:
        for _ in range(20):
            scene.responder.on_event(event_of(waits(0)), job_view({0: (2**22 - 1, 9)}))
        await scene.settle()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert len(scene.bundler.cases) == 4


def test_closing_ends_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that runs at the job's end gets a moment, then SIGTERM."""
    monkeypatch.setattr("tracecore_sidecar.on_hang.responder.CLOSE_WAIT_S", 0.3)
    scene = Scene(tmp_path, "sh -c 'sleep 600'")

    async def run() -> float:
        scene.responder.on_event(event_of(waits(0)), job_view({0: (2**22 - 1, 9)}))
        await asyncio.sleep(0.5)
        started = time.monotonic()
        await scene.responder.close()
        return time.monotonic() - started

    assert asyncio.run(asyncio.wait_for(run(), 30)) < 10


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
