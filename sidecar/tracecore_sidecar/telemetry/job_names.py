"""The series that tell about the job: names, units, meanings and labels."""

from __future__ import annotations

from tracecore_sidecar.telemetry.families import Described, Kind

RANK_LABELS = ("job_id", "attempt", "host", "rank")
JOB_LABELS = ("job_id", "attempt")

UP = Described(
    "tracecore.rank.up",
    Kind.GAUGE,
    "",
    "1: the rank beats or moves; 0: neither for 90 s. Absent once it ended.",
    RANK_LABELS,
)
ENDED = Described(
    "tracecore.rank.ended",
    Kind.GAUGE,
    "",
    "1 for a rank whose process ended; outcome is ok, failed, signal or unknown.",
    (*RANK_LABELS, "outcome"),
)
STEPS = Described("tracecore.rank.steps", Kind.COUNTER, "{step}", "Steps ended.", RANK_LABELS)
BATCHES = Described(
    "tracecore.rank.batches", Kind.COUNTER, "{batch}", "Batches taken from loaders.", RANK_LABELS
)
STEP_DURATION = Described(
    "tracecore.rank.step.duration", Kind.SUMMARY, "s", "Time of the steps.", RANK_LABELS
)
INPUT_WAIT = Described(
    "tracecore.rank.input.wait",
    Kind.SUMMARY,
    "s",
    "Time inside next(dataloader) on the training thread, of the same steps.",
    RANK_LABELS,
)
CHECKPOINT_TIME = Described(
    "tracecore.rank.checkpoint.time",
    Kind.COUNTER,
    "s",
    "Time inside checkpoint calls.",
    RANK_LABELS,
)
INPUT_CURRENT = Described(
    "tracecore.rank.input.current_wait",
    Kind.GAUGE,
    "s",
    "How long the rank has been inside next(dataloader) now; 0 outside.",
    RANK_LABELS,
)
CHECKPOINT_CURRENT = Described(
    "tracecore.rank.checkpoint.current_time",
    Kind.GAUGE,
    "s",
    "How long the rank has been inside a checkpoint call now; 0 outside.",
    RANK_LABELS,
)
PROGRESS_AGE = Described(
    "tracecore.rank.progress.age",
    Kind.GAUGE,
    "s",
    "Since anything of the rank was last seen to move: a step, a batch, a phase, a counter.",
    RANK_LABELS,
)
HEARTBEAT_AGE = Described(
    "tracecore.rank.heartbeat.age",
    Kind.GAUGE,
    "s",
    "Since the last beat of the rank's export thread, which needs the GIL.",
    RANK_LABELS,
)
MEMORY = Described(
    "tracecore.rank.memory.usage", Kind.GAUGE, "By", "Resident memory of the process.", RANK_LABELS
)
CPU_TIME = Described(
    "tracecore.rank.cpu.time",
    Kind.COUNTER,
    "s",
    "User and system time of the process.",
    RANK_LABELS,
)
LOST = Described(
    "tracecore.rank.records.lost",
    Kind.COUNTER,
    "{record}",
    "Records and flight-recorder entries of the rank that were lost.",
    RANK_LABELS,
)
RANKS = Described(
    "tracecore.job.ranks",
    Kind.GAUGE,
    "{rank}",
    "Ranks of the job by state as this sidecar sees them: up, silent, ended, unseen.",
    (*JOB_LABELS, "state"),
)
VERDICT_OPEN = Described(
    "tracecore.verdict.open",
    Kind.GAUGE,
    "",
    "1 for every open verdict and suspect; rank is empty where nobody is suspected.",
    (*RANK_LABELS, "pattern", "class", "severity", "confidence"),
)
INCIDENTS = Described(
    "tracecore.incidents",
    Kind.COUNTER,
    "{incident}",
    "Incidents opened since the sidecar started.",
    ("job_id", "pattern"),
)

JOB_METRICS = (
    UP,
    ENDED,
    STEPS,
    BATCHES,
    STEP_DURATION,
    INPUT_WAIT,
    CHECKPOINT_TIME,
    INPUT_CURRENT,
    CHECKPOINT_CURRENT,
    PROGRESS_AGE,
    HEARTBEAT_AGE,
    MEMORY,
    CPU_TIME,
    LOST,
    RANKS,
    VERDICT_OPEN,
    INCIDENTS,
)
"""The one visible list."""
