"""Faults act where and when they say, and leave nothing behind."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_train.errors import ConfigError
from tracecore_train.faults import Fault, install, parse_faults

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

torch = pytest.importorskip("torch")

DELAY_S = 0.2
SHORT_S = 0.1


class Training:
    """A tiny training loop that times its parts."""

    def __init__(self) -> None:
        self.model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.loader = iter(torch.utils.data.DataLoader(torch.ones(64, 2), batch_size=1))
        self.seconds: list[dict[str, float]] = []

    def step(self) -> None:
        """Run one step, noting the seconds of each part."""
        seconds: dict[str, float] = {}
        began = time.perf_counter()

        def note(part: str) -> None:
            nonlocal began
            now = time.perf_counter()
            seconds[part], began = now - began, now

        batch = next(self.loader)
        note("input")
        loss = self.model(batch).sum()
        note("forward")
        self.optimizer.zero_grad()
        loss.backward()
        note("backward")
        self.optimizer.step()
        note("host")
        self.seconds.append(seconds)

    def slow_parts(self) -> list[tuple[int, str]]:
        """(step, part) of everything that took as long as a fault."""
        return [
            (step, part)
            for step, parts in enumerate(self.seconds)
            for part, seconds in parts.items()
            if seconds > SHORT_S
        ]


@pytest.fixture
def rehearse() -> Iterator[Any]:
    """Install a fault text on rank 1 for the time of a test, and give a training loop."""
    undo = []

    def start(text: str) -> Training:
        training = Training()
        training.step()  # what the first step alone pays for
        training.seconds.clear()
        undo.append(install(parse_faults(text), rank=1, attempt=0))
        return training

    yield start
    for uninstall in undo:
        uninstall()


def test_the_documented_examples_parse() -> None:
    """The three kinds give the fields that were written."""
    slow, hang, kill = parse_faults(
        "slow:rank=1,ms=50,from=40,where=backward; hang:rank=2,at=60,for=30,how=gil;"
        "kill:rank=0,at=5,signal=15,attempt=1"
    )
    assert slow == Fault(
        kind="slow", rank=1, first_step=40, duration_ns=50_000_000, where="backward"
    )
    assert hang == Fault(kind="hang", rank=2, first_step=60, duration_ns=30_000_000_000, how="gil")
    assert kill == Fault(kind="kill", rank=0, first_step=5, signal=15, attempt=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no fault given"),
        ("fast:rank=1", "kind 'fast' is unknown; accepted: slow, hang, kill"),
        ("slow", "slow has no ''; accepted: rank, ms"),
        ("slow:rank=1", "ms missing"),
        ("hang:rank=1,at=3", "for missing"),
        ("slow:rank=1,ms=5,where=gpu", "where='gpu'; accepted: host, forward, backward, input"),
        ("slow:rank=1,ms=5,where=checkpoint", "where='checkpoint'; accepted: host,"),
        ("hang:rank=1,at=3,for=1,how=spin", "how='spin'; accepted: sleep, gil, stop"),
        ("slow:rank=-1,ms=5", "rank='-1' is not a whole number"),
        ("slow:rank=1_0,ms=5", "rank='1_0' is not a whole number"),
        ("slow:rank=1,ms=nan", "ms='nan' is not a number above 0"),
        ("slow:rank=1,ms=0", "ms='0' is not a number above 0"),
        ("hang:rank=1,at=1,for=1e9", "for='1e9' is not a number above 0, at most 86400"),
        ("slow:rank=1,ms=5,every=0", "every='0' is not a whole number 1 to"),
        ("slow:rank=1,ms=5,from=9,to=8", "to=8 lies before from=9"),
        ("slow:rank=1,rank=2,ms=5", "rank is given twice"),
        ("slow:rank=1,ms", "ms has no value"),
        ("kill:rank=1,at=1,signal=99", "signal='99' is not a whole number 1 to 64"),
        ("kill:rank=1,at=0", "at=0 with where=host never acts"),
        (";".join(["slow:rank=1,ms=5"] * 65), "65 faults given, at most 64"),
    ],
)
def test_a_bad_fault_is_an_error_that_says_what_is_accepted(text: str, message: str) -> None:
    """The message names the bad value and what would do."""
    with pytest.raises(ConfigError) as caught:
        parse_faults(text)
    assert message in str(caught.value)


def test_two_slow_ranks_can_alternate() -> None:
    """every=2 from 40 and from 41 are never due in the same step."""
    even, odd = parse_faults("slow:rank=0,ms=5,from=40,every=2;slow:rank=1,ms=5,from=41,every=2")
    assert [step for step in range(39, 45) if even.is_due(step)] == [40, 42, 44]
    assert [step for step in range(39, 45) if odd.is_due(step)] == [41, 43]


@pytest.mark.parametrize("where", ["input", "forward", "backward"])
def test_a_slowness_lies_where_it_says(rehearse: Any, where: str) -> None:
    """Steps 2 and 3 are slow in the named part and nowhere else."""
    training = rehearse(f"slow:rank=1,ms={DELAY_S * 1e3},from=2,to=3,where={where}")
    for _ in range(5):
        training.step()
    assert training.slow_parts() == [(2, where), (3, where)]


def test_a_slow_host_delays_after_the_step_has_ended(rehearse: Any) -> None:
    """A host delay of step 2 is inside the optimizer call that ends step 1."""
    training = rehearse(f"slow:rank=1,ms={DELAY_S * 1e3},from=2,to=2")
    for _ in range(4):
        training.step()
    assert training.slow_parts() == [(1, "host")]


def test_a_host_delay_comes_after_hooks_that_were_installed_later(rehearse: Any) -> None:
    """Another post hook, registered after the fault, sees the step end before the delay."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    training = rehearse(f"hang:rank=1,at=1,for={DELAY_S}")
    ends: list[float] = []
    handle = register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    try:
        training.step()
    finally:
        handle.remove()
    assert training.slow_parts() == [(0, "host")]
    assert time.perf_counter() - ends[0] > SHORT_S


def test_evaluation_is_not_slow_in_forward(rehearse: Any) -> None:
    """A forward call without gradients neither waits nor uses up the step's delay."""
    training = rehearse(f"slow:rank=1,ms={DELAY_S * 1e3},from=0,to=0,where=forward")
    began = time.perf_counter()
    with torch.no_grad():
        training.model(torch.ones(1, 2))
    assert time.perf_counter() - began < SHORT_S
    training.step()
    assert training.slow_parts() == [(0, "forward")]


def test_a_subclass_that_calls_super_counts_one_step(rehearse: Any) -> None:
    """Steps are not counted twice when an optimizer's step calls its base class's."""

    class Derived(torch.optim.SGD):  # type: ignore[misc, name-defined, unused-ignore]
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    training = rehearse(f"slow:rank=1,ms={DELAY_S * 1e3},from=2,to=2,where=input")
    training.optimizer = Derived(training.model.parameters(), lr=0.1)
    for _ in range(4):
        training.step()
    assert training.slow_parts() == [(2, "input")]


@pytest.mark.parametrize("how", ["sleep", "gil"])
def test_a_hang_happens_once(rehearse: Any, how: str) -> None:
    """A hang acts in its step and never again."""
    training = rehearse(f"hang:rank=1,at=1,for={DELAY_S},where=input,how={how}")
    for _ in range(4):
        training.step()
    assert training.slow_parts() == [(1, "input")]


@pytest.mark.parametrize(("how", "is_silent"), [("gil", True), ("sleep", False)])
def test_only_a_gil_hang_silences_other_threads(rehearse: Any, how: str, is_silent: bool) -> None:
    """With how=gil no Python thread runs for the length of the hang; with sleep they do."""
    beats: list[float] = []
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(0.005):
            beats.append(time.perf_counter())

    def wait_for_a_beat() -> None:
        count, deadline = len(beats), time.monotonic() + 30
        while len(beats) == count and time.monotonic() < deadline:
            time.sleep(0.01)

    training = rehearse(f"hang:rank=1,at=0,for=1,where=input,how={how}")
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        wait_for_a_beat()
        training.step()
        wait_for_a_beat()
    finally:
        is_over.set()
        thread.join()
    longest = max(after - before for before, after in itertools.pairwise(beats))
    assert (longest > 0.95) is is_silent


def test_a_checkpoint_hang_waits_in_torch_save(rehearse: Any, tmp_path: Path) -> None:
    """The first torch.save in or after the step takes the time, the next does not."""
    training = rehearse(f"hang:rank=1,at=0,for={DELAY_S},where=checkpoint")
    training.step()
    took = []
    for number in (1, 2):
        began = time.perf_counter()
        torch.save({"number": number}, tmp_path / "checkpoint.pt")
        took.append(time.perf_counter() - began)
    assert took[0] > DELAY_S > SHORT_S > took[1]
    assert torch.load(tmp_path / "checkpoint.pt") == {"number": 2}


@pytest.mark.parametrize(("rank", "attempt"), [(0, 0), (1, 1)])
def test_other_ranks_and_attempts_are_left_alone(
    rank: int, attempt: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where no fault applies nothing is installed and nothing said."""
    before = torch.Tensor.backward
    install(parse_faults("slow:rank=1,ms=9,where=backward"), rank=rank, attempt=attempt)
    assert torch.Tensor.backward is before
    assert capfd.readouterr().err == ""


def test_an_active_rehearsal_is_said_in_one_line(
    rehearse: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error names the rank and the fault."""
    rehearse("slow:rank=1,ms=50,from=40,where=backward")
    assert capfd.readouterr().err == (
        "tracecore: rehearsal active on rank 1: slow by 50 ms in backward, every step from 40\n"
    )


def _hooks() -> list[Any]:
    from torch.nn.modules import module
    from torch.optim import optimizer
    from torch.utils.data import dataloader

    return [
        dict(optimizer._global_optimizer_pre_hooks),
        dict(optimizer._global_optimizer_post_hooks),
        dict(module._global_forward_pre_hooks),
        torch.Tensor.backward,
        torch.save,
        torch.serialization.save,
        dataloader._SingleProcessDataLoaderIter._next_data,
        dataloader._MultiProcessingDataLoaderIter._next_data,
    ]


ALL_PLACES = ";".join(
    f"hang:rank=1,at=1,for=0.01,where={where}"
    for where in ("host", "forward", "backward", "input", "checkpoint")
)


def test_uninstall_leaves_torch_as_it_was() -> None:
    """Every hook and patched attribute is what it was before, after steps in between."""
    before = _hooks()
    uninstall = install(parse_faults(ALL_PLACES), rank=1, attempt=0)
    assert _hooks() != before
    training = Training()
    training.step()
    training.step()
    uninstall()
    assert _hooks() == before


def test_a_wrapper_put_on_top_survives_uninstall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's later wrapper stays in place, and the fault below it only passes through."""
    uninstall = install(parse_faults(ALL_PLACES), rank=1, attempt=0)
    ours = torch.Tensor.backward

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", theirs)
    uninstall()
    assert torch.Tensor.backward is theirs
    parameter = torch.ones(1, requires_grad=True)
    parameter.sum().backward()
    assert parameter.grad.item() == 1


def test_gradients_are_bit_identical() -> None:
    """Rehearsing faults changes no number."""

    def train() -> list[Any]:
        torch.manual_seed(7)
        training = Training()
        for _ in range(3):
            training.step()
        return [parameter.detach().clone() for parameter in training.model.parameters()]

    expected = train()
    uninstall = install(parse_faults(ALL_PLACES), rank=1, attempt=0)
    try:
        found = train()
    finally:
        uninstall()
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


PROGRAM = """
import sys, torch
from tracecore_train.faults import install, parse_faults
install(parse_faults(sys.argv[1]), rank=1, attempt=0)
optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
for _ in range(3):
    optimizer.step()
print("done", flush=True)
"""


def test_a_kill_ends_the_process_by_its_signal() -> None:
    """The rank dies of the signal at its step."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "kill:rank=1,at=2,signal=9"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-9, "")


def test_a_stopped_process_is_stopped_and_continues() -> None:
    """With how=stop the process is in state T for the length of the hang, then goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "hang:rank=1,at=1,for=2,how=stop"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        stopped_s = 0.0
        deadline = time.monotonic() + 100
        while process.poll() is None:
            assert time.monotonic() < deadline
            with open(f"/proc/{process.pid}/stat") as file:
                stopped_s += 0.02 * (file.read().rpartition(")")[2].split()[0] == "T")
            time.sleep(0.02)
        stdout, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, stdout) == (0, "done\n")
    assert stopped_s > 1
