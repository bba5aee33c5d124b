"""The one table of signals: what can be known about a job, who gives it, how to open it.

A signal is a named kind of fact. At any time each is *measured* (what gives it is in place and
works), *blind* with a reason (it should be there and cannot be had), or *off* (nobody asked for
it, or this version does not read it). Blindness is data: an absent signal is never health, and a
verdict lists the signals it had to do without.

:data:`SIGNALS` is the whole vocabulary. A signal is ``off`` for good while nothing in this version
gives it (``given_by`` is empty); whoever builds that fills in the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator


class SignalSource(str, Enum):
    """Where a signal comes from."""

    RANK = "rank"
    """The training process: a hook, or the page it keeps."""
    LAUNCHER = "launcher"
    """``tracecore run``, which only a parent can replace."""
    SIDECAR = "sidecar"
    """The process beside it: what a node shows about its ranks, and about itself."""


class SignalState(str, Enum):
    """How a signal stands."""

    MEASURED = "measured"
    BLIND = "blind"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One kind of fact."""

    name: str
    shows: str
    """What it is for, in a phrase."""
    source: SignalSource
    given_by: str
    """Hook of the rank (as in the ``hooks`` setting), or module of the sidecar or launcher that
    gives it; empty: nothing in this version does."""
    way: str
    """What a user can do where it is blind or off."""
    is_of_device: bool = False
    """Only a rank that trains on a device can have it."""


PAGE = "page"
"""Giver of what needs no hook: the rank page itself."""

SIGNALS = (
    Signal(
        name="rank_page",
        shows="where a rank is, also when it hangs, is stopped or has died",
        source=SignalSource.RANK,
        given_by=PAGE,
        way="point TRACECORE_RUNTIME_DIR to a private directory on a tmpfs with room",
    ),
    Signal(
        name="steps",
        shows="when steps end and how long they take",
        source=SignalSource.RANK,
        given_by="optimizer",
        way="use an optimizer of torch.optim, or call tracecore_train.step()",
    ),
    Signal(
        name="step_parts",
        shows="forward, backward and optimizer time of a step, on the host",
        source=SignalSource.RANK,
        given_by="backward",
        way="leave the backward hook on (TRACECORE_HOOKS)",
    ),
    Signal(
        name="step_parts.transfer",
        shows="time spent issuing host-to-device copies of batches",
        source=SignalSource.RANK,
        given_by="backward",
        way='name it: with tracecore_train.phase("transfer"), or use the Lightning callback',
        is_of_device=True,
    ),
    Signal(
        name="device_time",
        shows="time of a step on the device: slowness that begins there",
        source=SignalSource.RANK,
        given_by="device_time",
        way="train on a CUDA device with the device_time hook on (TRACECORE_HOOKS)",
        is_of_device=True,
    ),
    Signal(
        name="input",
        shows="time inside next(dataloader), and since when",
        source=SignalSource.RANK,
        given_by="dataloader",
        way="read batches through a torch DataLoader",
    ),
    Signal(
        name="input.queue",
        shows="batches that lie ready, batches asked for, loader workers alive",
        source=SignalSource.RANK,
        given_by="dataloader",
        way="use a DataLoader with num_workers of 1 or more",
    ),
    Signal(
        name="checkpoint",
        shows="time inside checkpoint calls, and since when",
        source=SignalSource.RANK,
        given_by="checkpoint",
        way="save through torch.save or torch.distributed.checkpoint, or name a phase",
    ),
    Signal(
        name="memory.device",
        shows="what the device allocator holds, its peaks and its fragmentation",
        source=SignalSource.RANK,
        given_by="memory",
        way="train on a CUDA device with the memory hook on (TRACECORE_HOOKS)",
        is_of_device=True,
    ),
    Signal(
        name="memory.oom",
        shows="each failed device allocation: its size and where it came from",
        source=SignalSource.RANK,
        given_by="memory",
        way="train on a CUDA build of torch with the memory hook on (TRACECORE_HOOKS)",
        is_of_device=True,
    ),
    Signal(
        name="memory.peaks",
        shows="the highest allocation of each step by itself",
        source=SignalSource.RANK,
        given_by="memory_peaks",
        way="TRACECORE_HOOKS=+memory_peaks (it resets the allocator's peaks, which are yours)",
        is_of_device=True,
    ),
    Signal(
        name="gc",
        shows="pauses of Python's garbage collector",
        source=SignalSource.RANK,
        given_by="gc",
        way="leave the gc hook on (TRACECORE_HOOKS)",
    ),
    Signal(
        name="exceptions",
        shows="the exception that ended a rank or one of its threads",
        source=SignalSource.RANK,
        given_by="failure",
        way="leave the failure hook on (TRACECORE_HOOKS)",
    ),
    Signal(
        name="exceptions.distributed",
        shows="errors of torch.distributed calls, caught by the script or not",
        source=SignalSource.RANK,
        given_by="failure",
        way="none with this torch: the calls are seen as an exception only where it ends the rank",
    ),
    Signal(
        name="sigterm",
        shows="that SIGTERM was received, also while a collective blocks: an eviction",
        source=SignalSource.RANK,
        given_by="sigterm",
        way="TRACECORE_HOOKS=+sigterm (a signal handler is installed: opt-in)",
    ),
    Signal(
        name="ptrace_grant",
        shows="that the sidecar may take the rank's stack where Yama restricts ptrace",
        source=SignalSource.RANK,
        given_by="ptracer",
        way="leave the ptracer hook on (TRACECORE_HOOKS); with kernel.yama.ptrace_scope=2 give "
        "the sidecar CAP_SYS_PTRACE",
    ),
    Signal(
        name="process_groups",
        shows="which groups exist and which ranks are in them",
        source=SignalSource.RANK,
        given_by="process_groups",
        way="use torch.distributed with the process_groups hook on (TRACECORE_HOOKS)",
    ),
    Signal(
        name="collectives.counters",
        shows="that collectives move on in each group",
        source=SignalSource.RANK,
        given_by="process_groups",
        way="unset TORCH_FR_BUFFER_SIZE and TORCH_NCCL_TRACE_BUFFER_SIZE, or set both to 2000; "
        "torch 2.8 or newer on gloo",
    ),
    Signal(
        name="collectives.entries",
        shows="each collective: who entered it, when, with which sizes; names who is behind",
        source=SignalSource.RANK,
        given_by="worker_server",
        way="leave the flight recorder and the worker_server hook on; a socket path of 107 bytes "
        "at most (TRACECORE_RUNTIME_DIR); torch 2.10 or newer on gloo; legacy NCCL: "
        "TRACECORE_NCCL_PULL=on-suspicion",
    ),
    Signal(
        name="collective_timing",
        shows="start and duration of collectives on the device",
        source=SignalSource.RANK,
        given_by="collective_timing",
        way="TRACECORE_HOOKS=+collective_timing (NCCL only; an extra device event per collective, "
        "and it cannot be turned off again in a process)",
        is_of_device=True,
    ),
    Signal(
        name="exact_collectives",
        shows="every collective as it is issued, none sampled away",
        source=SignalSource.RANK,
        given_by="exact_collectives",
        way="TRACECORE_HOOKS=+exact_collectives (needs ProcessGroup.register_pre_hook, torch 2.14 "
        "or newer; Python runs on each collective)",
    ),
    Signal(
        name="point_to_point",
        shows="send and recv calls, which gloo's recorder leaves out",
        source=SignalSource.RANK,
        given_by="point_to_point",
        way="TRACECORE_HOOKS=+point_to_point (Python runs on each send and recv)",
    ),
    Signal(
        name="worker_exits",
        shows="starts, exits and signals of the ranks, with the parent's authority",
        source=SignalSource.LAUNCHER,
        given_by="worker_watch",
        way="start the job with `tracecore run`",
    ),
    Signal(
        name="stacks",
        shows="the Python stack of a rank that hangs, without its help",
        source=SignalSource.SIDECAR,
        given_by="stacks",
        way="pip install py-spy; give the sidecar CAP_SYS_PTRACE (containers: add SYS_PTRACE and "
        "share the pid namespace), or set kernel.yama.ptrace_scope=0",
    ),
    Signal(
        name="host.process",
        shows="state, processor time and memory of each rank as /proc shows them",
        source=SignalSource.SIDECAR,
        given_by="process",
        way="run the sidecar in the ranks' pid namespace, as their user",
    ),
    Signal(
        name="host.pss",
        shows="memory of each rank with shared pages counted once",
        source=SignalSource.SIDECAR,
        given_by="pss",
        way="run the sidecar as the ranks' user, or with CAP_SYS_PTRACE",
    ),
    Signal(
        name="nccl_ras",
        shows="which members of its groups NCCL cannot reach, or counts differently; a hint",
        source=SignalSource.SIDECAR,
        given_by="nccl_ras",
        way="TRACECORE_NCCL_PULL=on-suspicion; NCCL 2.24 or newer without NCCL_RAS_ENABLE=0, "
        "NCCL_RAS_ADDR unset or an address of the node",
    ),
    Signal(
        name="kernel_log",
        shows="Xid, OOM-kill and link lines of the kernel",
        source=SignalSource.SIDECAR,
        given_by="",
        way="make /dev/kmsg readable: mount it into the container and give CAP_SYSLOG "
        "(or kernel.dmesg_restrict=0)",
    ),
    Signal(
        name="gpu",
        shows="clocks, throttling, temperature, ECC and NVLink of the GPUs",
        source=SignalSource.SIDECAR,
        given_by="",
        way="make libnvidia-ml.so.1 loadable: NVIDIA driver on the host, "
        "NVIDIA_DRIVER_CAPABILITIES=utility in the container",
    ),
    Signal(
        name="infiniband",
        shows="state and error counters of InfiniBand and RoCE ports",
        source=SignalSource.SIDECAR,
        given_by="",
        way="show /sys/class/infiniband to the sidecar (containers: mount /sys)",
    ),
    Signal(
        name="pcie",
        shows="link speed, width and AER counters on the way to GPUs and network cards",
        source=SignalSource.SIDECAR,
        given_by="",
        way="show /sys/bus/pci/devices to the sidecar (containers: mount /sys)",
    ),
    Signal(
        name="cgroup",
        shows="processor throttling, memory limit and OOM kills of the ranks' cgroups",
        source=SignalSource.SIDECAR,
        given_by="",
        way="mount cgroup v2 at /sys/fs/cgroup",
    ),
    Signal(
        name="pressure",
        shows="processor, memory and disk pressure of the node (PSI)",
        source=SignalSource.SIDECAR,
        given_by="",
        way="boot the kernel with psi=1",
    ),
)
"""Every signal, in the order people read them."""

BY_NAME = {signal.name: signal for signal in SIGNALS}

NOT_READ = "this version does not read it"
"""Why a signal that nothing gives is off."""


def given_by(giver: str) -> tuple[str, ...]:
    """Name the signals of one hook or module."""
    return tuple(signal.name for signal in SIGNALS if signal.given_by == giver)


def explain(signals: Iterable[str], text: str) -> Iterator[str]:
    """Say of each of ``signals`` why it is blind.

    ``text`` is a reason, with or without a signal's name and a colon before it.
    """
    name, separator, reason = text.partition(": ")
    why = reason if separator and name in BY_NAME else text
    for signal in signals:
        yield f"{signal}: {why}"


def name_in(text: str) -> str:
    """Give the signal that a text ``signal: reason`` is about."""
    return text.partition(":")[0]


def measured_among(
    names: Iterable[str], *, blind: Iterable[str], off: Collection[str]
) -> tuple[str, ...]:
    """Give what is left of ``names`` when the blind and the off ones are taken out."""
    unseen = {name_in(text) for text in blind}
    return tuple(name for name in names if name not in unseen and name not in off)
