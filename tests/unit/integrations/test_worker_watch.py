"""The worker watch patches torch for a time, and never fails torchrun."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tracecore_integrations.worker_watch import WorkerWatch
from tracecore_train.wire.records import RendezvousRecord

if TYPE_CHECKING:
    from tracecore_integrations.worker_watch import Sighting

agent_module = pytest.importorskip("torch.distributed.elastic.agent.server.local_elastic_agent")


@pytest.fixture
def agent_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An agent class in torch's place whose workers are process 0 of nobody."""

    class Agent:
        _remaining_restarts = 1

        def _start_workers(self, worker_group: Any) -> dict[int, int]:
            return {0: 2**22 + 1}

    monkeypatch.setattr(agent_module, "LocalElasticAgent", Agent)
    return Agent


def group(**changes: Any) -> Any:
    """A worker group of one worker, as torchrun has it."""
    worker = SimpleNamespace(local_rank=0, global_rank=4, world_size=8)
    spec = SimpleNamespace(max_restarts=3)
    return SimpleNamespace(**{"workers": [worker], "spec": spec, "group_rank": 1, **changes})


def test_a_start_is_seen_and_passed_through(agent_class: Any) -> None:
    """The wrapped start returns what torchrun's returns and gives one rendezvous."""
    seen: list[Sighting] = []
    watch = WorkerWatch(seen.append)
    watch.install()
    assert agent_class()._start_workers(group()) == {0: 2**22 + 1}
    watch.uninstall()
    (sighting,) = seen
    assert (sighting.attempt, sighting.node_rank) == (2, 1)
    assert isinstance(sighting.record, RendezvousRecord)
    assert (sighting.record.ranks, sighting.record.world_size) == ((4,), 8)


@pytest.mark.parametrize("changes", [{"workers": None}, {"spec": None}, {"workers": [object()]}])
def test_a_torch_that_looks_different_is_blindness_not_failure(
    agent_class: Any, changes: dict[str, Any]
) -> None:
    """Where the private names changed, the start goes on and the reason is kept."""
    seen: list[Sighting] = []
    watch = WorkerWatch(seen.append)
    watch.install()
    assert agent_class()._start_workers(group(**changes)) == {0: 2**22 + 1}
    watch.uninstall()
    assert seen == []
    assert watch.blind is not None
    assert "look different" in watch.blind


def test_a_torch_without_the_method_is_blindness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is nothing to wrap, nothing is wrapped and the reason is kept."""
    monkeypatch.setattr(agent_module, "LocalElasticAgent", type("Agent", (), {}))
    watch = WorkerWatch(lambda _: None)
    watch.install()
    watch.uninstall()
    assert watch.blind is not None
    assert "_start_workers" in watch.blind


def test_uninstall_puts_back_what_was_there(agent_class: Any) -> None:
    """The class holds its own method again."""
    before = vars(agent_class)["_start_workers"]
    watch = WorkerWatch(lambda _: None)
    watch.install()
    assert vars(agent_class)["_start_workers"] is not before
    watch.uninstall()
    assert vars(agent_class)["_start_workers"] is before


def test_todays_torch_can_be_watched() -> None:
    """The private names the watch needs exist in the installed torch."""
    watch = WorkerWatch(lambda _: None)
    watch.install()
    watch.uninstall()
    assert watch.blind is None
