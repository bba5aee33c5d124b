"""Files in, what they hold out, sorted by kind; each is listed, with what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracecore_sidecar.offline.content import Kind, recognise
from tracecore_sidecar.offline.dump_entry import EntryReader
from tracecore_sidecar.offline.rank_name import rank_in_name
from tracecore_sidecar.offline.recorder_file import read_recorder
from tracecore_sidecar.offline.refused import RefusedError, UnknownKindError, unreadable
from tracecore_sidecar.offline.walk import walk
from tracecore_sidecar.offline.watchdog_log import read_log
from tracecore_train.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tracecore_sidecar.offline.recorder_file import RecorderFile
    from tracecore_sidecar.offline.walk import Found
    from tracecore_sidecar.offline.watchdog_log import LogFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A file that was looked at."""

    path: Path
    kind: str
    status: str
    """``read``, ``not used`` or ``refused``."""
    detail: str
    """Why it was refused, or what it held."""
    rank: int | None = None


class Inputs:
    """What was read so far."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.listed: list[Input] = []
        """Every file that was looked at."""
        self.dumps: list[tuple[Path, int, RecorderFile]] = []
        """Flight recorder dumps, each with its directory and rank."""
        self.logs: list[tuple[Path, LogFacts]] = []
        """Training logs in which something was found."""
        self.records: list[Path] = []
        """Directories of our own records."""
        self._reader = EntryReader()

    def refuse(self, path: Path, reason: str, kind: str = "") -> None:
        """List a file that was not read, with the reason."""
        self.listed.append(Input(path=path, kind=kind, status="refused", detail=reason))

    def read(self, found: Found) -> None:
        """Read one file; whatever is wrong with it stays with it."""
        path = found.path
        try:
            self._read(path, found.num_bytes)
        except UnknownKindError as error:
            status = "refused" if found.is_given else "not used"
            self.listed.append(Input(path=path, kind="", status=status, detail=str(error)))
        except (RefusedError, WireError) as error:
            self.refuse(path, str(error))
        except OSError as error:
            self.refuse(path, unreadable(error))
        except MemoryError:
            self.refuse(path, "too large for the memory of this machine")

    def _read(self, path: Path, num_bytes: int) -> None:
        content = recognise(path, num_bytes)
        rank, detail, status = None, "", "read"
        if content.kind is Kind.RECORDER:
            named = rank_in_name(path)
            file = read_recorder(content.value, str(path), named, self._reader)
            rank = file.rank
            if rank is None:
                raise RefusedError("a flight recorder dump of an unknown rank: put it in the name")
            detail = f"{file.num_entries} entries, version {file.version}"
            if named is not None and named != rank:
                detail += f"; its content says rank {rank}, its name {named}"
            self.dumps.append((path.parent, rank, file))
        elif content.kind is Kind.RECORDS:
            if path.parent not in self.records:
                self.records.append(path.parent)
        elif content.kind is Kind.LOG:
            facts = read_log(path, content.value)
            if facts.num_facts:
                self.logs.append((path, facts))
                detail = f"{facts.num_facts} lines about timeouts and exits"
            else:
                status, detail = "not used", "no line about a timeout or an exit"
        else:
            status = "not used"
        self.listed.append(
            Input(path=path, kind=content.kind.value, status=status, detail=detail, rank=rank)
        )


def read_paths(paths: Iterable[Path]) -> Inputs:
    """Read everything below some paths."""
    inputs = Inputs()
    for found in walk(paths):
        if found.problem:
            inputs.refuse(found.path, found.problem)
        else:
            inputs.read(found)
    return inputs
