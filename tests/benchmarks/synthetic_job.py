"""Plays the ranks of one node towards a real sidecar: pages, OTLP senders, worker servers.

    synthetic_job.py JOB_DIR JOB_ID NUM_RANKS

Every rank takes ``STEPS_PER_S`` steps of ``COLLECTIVES_PER_STEP`` collectives: five of six in its
group of ``GROUP_SIZE`` neighbours (tensor parallel), the others among all ranks. Its flight
recorder is a full ring of 2,000 entries in torch's own JSON, which advances. Ranks hand over once
a second, all at its beginning as ours do, over connections that stay open. Nobody is slow.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
import time
from collections import deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tracecore_train import runtime
from tracecore_train.export.totals import Totals
from tracecore_train.identity import Identity, start_ticks
from tracecore_train.recorder.clock import wall_offset_ns
from tracecore_train.recorder.page import RankPage, Word
from tracecore_train.wire.otlp import encode_logs
from tracecore_train.wire.otlp_metrics import encode_metrics
from tracecore_train.wire.records import (
    Batch,
    GroupRecord,
    ProgressRecord,
    Record,
    StepFlag,
    StepRecord,
)

STEPS_PER_S = 4
COLLECTIVES_PER_STEP = 12
GROUP_SIZE = 4
WORLD_EVERY = 6
"""One of this many collectives is of all ranks."""
RING_ENTRIES = 2_000
METRICS_EVERY = 10
"""Hand-overs per hand-over of metrics."""
STEP_NS = 1_000_000_000 // STEPS_PER_S
_ENTRY = (
    '{"collective_seq_id":%d,"input_dtypes":["BFloat16"],"input_sizes":[[%d]],"is_p2p":false,'
    '"op_id":%d,"output_dtypes":["BFloat16"],"output_sizes":[[%d]],"p2p_seq_id":0,"pg_id":%d,'
    '"process_group":["%s","%s"],"profiling_name":"gloo:%s","record_id":%d,"retired":true,'
    '"state":"scheduled","thread_id":"140236484778880","thread_name":"python",'
    '"time_created_ns":%d,"time_discovered_completed_ns":0,"time_discovered_started_ns":0,'
    '"timeout_ms":1800000}'
)
_OPS = ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce")


class SyntheticRank:
    """One rank's page, ring and hand-overs."""

    def __init__(self, job_dir: Path, job_id: str, rank: int, world_size: int) -> None:
        """Make the page; the ring is filled as if the job had run for long."""
        self._offset_ns = wall_offset_ns()
        self._identity = Identity(
            job_id=job_id,
            attempt=0,
            rank=rank,
            local_rank=rank,
            node_rank=0,
            world_size=world_size,
            host=socket.gethostname(),
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            pid=os.getpid(),
            start_ticks=start_ticks(os.getpid()),
        )
        self._job_dir = job_dir
        self._rank = rank
        first = rank - rank % GROUP_SIZE
        self._groups = (
            GroupRecord(
                time_ns=time.monotonic_ns(),
                rank=rank,
                pg_name="0",
                pg_desc="default_pg",
                backend="gloo",
                ranks=tuple(range(world_size)),
            ),
            GroupRecord(
                time_ns=time.monotonic_ns(),
                rank=rank,
                pg_name=str(1 + first // GROUP_SIZE),
                pg_desc="tp",
                backend="gloo",
                ranks=tuple(range(first, min(first + GROUP_SIZE, world_size))),
            ),
        )
        self._page = RankPage.create(
            runtime.rank_page(job_dir, 0, rank),
            rank=rank,
            attempt=0,
            start_ticks=self._identity.start_ticks,
            wall_offset_ns=self._offset_ns,
        )
        self._jitter = random.Random(rank)
        self._ring: deque[str] = deque(maxlen=RING_ENTRIES)
        self._seq_ids = [-1, -1]
        self._num_entries = 0
        self._num_steps = 0
        self._waiting: list[Record] = []
        self._totals = Totals()
        self._start_ns = time.time_ns()
        num_before = RING_ENTRIES // COLLECTIVES_PER_STEP + 1
        self._began_ns = time.monotonic_ns() - num_before * STEP_NS
        for _ in range(num_before):
            self._collectives()

    async def run(self) -> None:
        """Serve the recorder, take steps, hand over."""
        path = runtime.worker_server_socket(self._job_dir, 0, self._rank)
        server = await asyncio.start_unix_server(self._serve, path)
        async with server:
            await asyncio.gather(self._train(), self._export())

    async def _train(self) -> None:
        self._began_ns = time.monotonic_ns() - self._num_steps * STEP_NS
        while True:
            end_ns = self._began_ns + (self._num_steps + 1) * STEP_NS
            await asyncio.sleep((end_ns - time.monotonic_ns()) / 1e9)
            self._collectives()
            self._waiting.append(
                StepRecord(
                    time_ns=end_ns,
                    rank=self._rank,
                    step=self._num_steps - 1,
                    duration_ns=STEP_NS,
                    input_ns=STEP_NS // 50,
                    num_batches=1,
                    checkpoint_ns=0,
                    flags=StepFlag.FIRST if self._num_steps == 1 else 0,
                )
            )
            words = self._page.words
            words[Word.STEP], words[Word.STEP_TIME] = self._num_steps, end_ns
            words[Word.NUM_BATCHES] = self._num_steps

    def _collectives(self) -> None:
        """Put the collectives of one step into the ring."""
        start_ns = self._began_ns + self._num_steps * STEP_NS + self._offset_ns
        for index in range(COLLECTIVES_PER_STEP):
            which = 0 if index % WORLD_EVERY == WORLD_EVERY - 1 else 1
            self._seq_ids[which] += 1
            group, seq_id = self._groups[which], self._seq_ids[which]
            created_ns = start_ns + (index + 1) * STEP_NS // (COLLECTIVES_PER_STEP + 1)
            size = 1_048_576 * (1 + index % 3)
            self._ring.append(
                _ENTRY
                % (
                    *(seq_id, size, seq_id, size, which, group.pg_name, group.pg_desc),
                    *(_OPS[index % 3], self._num_entries),
                    created_ns + self._jitter.randrange(300_000),
                )
            )
            self._num_entries += 1
        self._num_steps += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer as torch's worker server does: the whole ring, oldest first."""
        await reader.readuntil(b"\r\n\r\n")
        entries = ",".join(self._ring)
        body = f'{{"comm_lib_version":"","entries":[{entries}],"pg_config":{{}},"version":"2.10"}}'
        head = (
            "HTTP/1.1 200 OK\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n\r\n"
        )
        writer.write((head + body).encode("ascii"))
        await writer.drain()
        writer.close()

    async def _export(self) -> None:
        path = runtime.sidecar_socket(self._job_dir)
        reader, writer = await asyncio.open_unix_connection(path)
        for number in range(1 << 30):
            self._page.words[Word.HEARTBEAT] = time.monotonic_ns()
            rows, self._waiting = self._waiting, []
            self._totals.add(rows)
            states: list[Record] = (
                []
                if number
                else [self._identity.record(measured=(), blind=(), off=()), *self._groups]
            )
            source = self._identity.source(self._offset_ns)
            records: tuple[Record, ...] = (*states, *rows, *self._progress())
            body = encode_logs(Batch(source=source, records=records))
            await _post(reader, writer, "/v1/logs", body)
            if number % METRICS_EVERY == 0:
                body = encode_metrics(
                    source,
                    self._totals.points(0),
                    start_ns=self._start_ns,
                    time_ns=time.time_ns(),
                )
                await _post(reader, writer, "/v1/metrics", body)
            await asyncio.sleep(1 - time.monotonic() % 1)

    def _progress(self) -> list[Record]:
        return [
            ProgressRecord(
                time_ns=time.monotonic_ns(),
                rank=self._rank,
                pg_name=group.pg_name,
                enqueued=seq_id,
                started=-1,
                completed=seq_id,
            )
            for group, seq_id in zip(self._groups, self._seq_ids, strict=True)
        ]


async def _post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str, body: bytes
) -> None:
    head = (
        f"POST {target} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/x-protobuf\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode("ascii") + body)
    await writer.drain()
    answer = await reader.readuntil(b"\r\n\r\n")
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"the sidecar answered {answer[:80]!r}")
    for line in answer.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.split(b":")[1]))


async def main(job_dir: Path, job_id: str, num_ranks: int) -> None:
    """Play the ranks until killed."""
    runtime.make_private_dir(job_dir / "0")
    ranks = [SyntheticRank(job_dir, job_id, rank, num_ranks) for rank in range(num_ranks)]
    await asyncio.gather(*(rank.run() for rank in ranks))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
