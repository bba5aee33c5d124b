"""Makes bundles, one at a time, as many as a job may leave on a node."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracecore_sidecar.bundle.folder import BundleFolder, SpoiledError
from tracecore_sidecar.bundle.gather import DUMP_OF, Gathering
from tracecore_sidecar.bundle.manifest import manifest
from tracecore_sidecar.sources.beside import beside

if TYPE_CHECKING:
    from pathlib import Path

    from tracecore_sidecar.bundle.case import Case

DIRECTORY = "bundles"
MAX_BUNDLES = 20
"""In one output directory, so that a job that hangs all night fills no disk."""
DISK_TIMEOUT_S = 10.0
"""For making the directory and for putting the bundle into place."""

_log = logging.getLogger(__name__)


class BundleError(Exception):
    """There is no bundle; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that is in place."""

    path: Path
    num_bytes: int
    num_missing: int
    has_all_dumps: bool
    """Every flight recorder of this node that may be read is in it."""
    give_up_wall_ns: int | None
    """When torch itself would have given up the first wait; None where that is not known."""


class Bundler:
    """Makes the bundles of one sidecar."""

    def __init__(
        self, job_dir: Path, output: Path, *, wall_offset_ns: int, max_bundles: int = MAX_BUNDLES
    ) -> None:
        """Prepare; nothing is written before the first bundle."""
        self._job_dir = job_dir
        self._output = output
        self._wall_offset_ns = wall_offset_ns
        self._max_bundles = max_bundles
        self._one = asyncio.Lock()
        self.num_lost = 0
        """Bundles that could not be made."""

    async def make(self, case: Case) -> Bundle:
        """Gather and put into place; raise :class:`BundleError`. Blocks nothing."""
        async with self._one:
            try:
                return await self._make(case)
            except (SpoiledError, TimeoutError) as error:
                raise self._lost(f"{self._output / DIRECTORY}: {error}") from None

    async def _make(self, case: Case) -> Bundle:
        parent = self._output / DIRECTORY
        num_bundles = await beside(DISK_TIMEOUT_S, lambda: _count(parent))
        if num_bundles >= self._max_bundles:
            raise self._lost(f"{parent} holds {num_bundles} bundles, and no more are made")
        place = parent / case.incident_id
        if await beside(DISK_TIMEOUT_S, place.exists):
            raise self._lost(f"{place} is there already")
        folder = BundleFolder(place)
        try:
            await beside(DISK_TIMEOUT_S, folder.open)
            gathering = Gathering(case, folder, self._job_dir, self._output)
            await gathering.run()
            told = manifest(
                case,
                files=folder.files(),
                missing=gathering.missing,
                node=gathering.node,
                now_ns=time.monotonic_ns(),
                wall_offset_ns=self._wall_offset_ns,
            )
            path = await beside(DISK_TIMEOUT_S, lambda: folder.finish(told))
        except BaseException:
            # Also when cancelled at the job's end: nothing half made stays behind.
            await asyncio.shield(beside(DISK_TIMEOUT_S, folder.abandon))
            raise
        missed = [item["what"] for item in gathering.missing]
        return Bundle(
            path=path,
            num_bytes=folder.num_bytes,
            num_missing=len(missed),
            has_all_dumps=not any(DUMP_OF in what for what in missed),
            give_up_wall_ns=min(gathering.give_up_wall_ns, default=None),
        )

    def _lost(self, reason: str) -> BundleError:
        if self.num_lost == 0:
            _log.warning("no bundle: %s; further ones are counted", reason)
        self.num_lost += 1
        return BundleError(reason)


def _count(parent: Path) -> int:
    if not parent.is_dir():
        return 0
    return sum(1 for path in parent.iterdir() if not path.name.startswith("."))
