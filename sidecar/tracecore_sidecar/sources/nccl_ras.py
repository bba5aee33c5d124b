"""Asks NCCL's RAS service: one exchange of text lines over TCP, every wait bounded.

Each process that uses NCCL 2.24 or newer runs a thread that answers for the whole job, so one
answer of one process is enough. Several processes may share a port; then the kernel chooses which
of them is asked, also one that is stopped, and a connection that nobody greets is tried again.

Where it listens is told by the rank's environment, which is not trusted: only addresses of this
node are asked. Asking makes the service gather from all processes of the job, and some releases of
NCCL crashed over that: ask only where the user allows it. Never raises, and blocks: call it beside
the event loop.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_S = 3.0
"""For everything together."""
GREETING_TIMEOUT_S = 0.5
"""For each connection, until it is clear that somebody answers: a thread of its own does."""
SERVICE_TIMEOUT_S = 1
"""How long the service may wait for a process that does not answer. A whole number: not every
release takes another. Processes pass answers on, so all of it may take some seconds more."""
MAX_ANSWER_BYTES = 4 << 20
"""Some 6,000 ranks of one group as JSON."""
MAX_LINE_BYTES = 1_024
MAX_ADDRESSES = 8
MAX_TRIES = 4
"""Connections to one address: a port that several processes share may lead to a stopped one."""
MAX_ENVIRON_BYTES = 1 << 20
DEFAULT_ADDRESS = "localhost:28028"
PROTOCOL = 2
"""Of the client. The service tells its own, and answers others all the same."""
MAX_DIGITS = 8
MAX_SHOWN = 80
"""Of what somebody else wrote, in a reason."""
_SETTINGS = ("NCCL_RAS_ENABLE", "NCCL_RAS_ADDR")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What moves a terminal's cursor or turns text round; a line feed and a tab may stay."""


class Address(NamedTuple):
    """Where a service listens."""

    host: str
    """Always a number."""
    port: int

    def __str__(self) -> str:
        """Write it as NCCL does."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RasAnswer:
    """What came of asking."""

    text: str = ""
    """The answer as far as it came, without control characters: JSON, or the text for people."""
    address: str = ""
    """Who answered."""
    reason: str = ""
    """Why there is no answer or not all of it, and what can be done; empty: it is whole."""


class _NoAnswerError(Exception):
    """Nobody answered; the message says why."""


def ask_ras(
    pids: Sequence[int], *, timeout_s: float = TIMEOUT_S, proc: Path = Path("/proc")
) -> RasAnswer:
    """Ask the service of one of these processes; the first that answers is enough.

    Put those first that are likely to answer.
    """
    deadline = time.monotonic() + timeout_s
    reasons: dict[str, list[str]] = {}
    """Where each was met."""
    asked: set[Address] = set()
    for pid in pids:
        try:
            found = listens_at(read_settings(pid, proc))
        except OSError as error:
            reasons.setdefault(error.strerror or str(error), []).append(f"/proc/{pid}/environ")
            continue
        except ValueError as error:
            reasons.setdefault(str(error), [])
            continue
        for address in found:
            if address in asked or len(asked) >= MAX_ADDRESSES:
                continue
            asked.add(address)
            try:
                return _ask(address, deadline)
            except _NoAnswerError as error:
                reasons.setdefault(str(error), []).append(str(address))
        if time.monotonic() >= deadline:
            break
    told = [f"{', '.join(where)}: {why}" if where else why for why, where in reasons.items()]
    return RasAnswer(reason="; ".join(told) or "no rank with NCCL runs on this node")


def read_settings(pid: int, proc: Path = Path("/proc")) -> dict[str, str]:
    """Give the two variables that steer the service; raise ``OSError``.

    A process shows the environment it was started with, not what its script set later.
    """
    with (proc / str(pid) / "environ").open("rb") as file:
        raw = file.read(MAX_ENVIRON_BYTES)
    pairs = (pair.partition(b"=") for pair in raw.split(b"\0"))
    return {
        name.decode(): value.decode("utf-8", "replace")
        for name, _, value in pairs
        if name.decode("ascii", "replace") in _SETTINGS
    }


def listens_at(settings: dict[str, str]) -> tuple[Address, ...]:
    """Give the addresses of this node at which the service may listen.

    Raises ``ValueError`` where it is off, or would be elsewhere.
    """
    if _is_zero(settings.get("NCCL_RAS_ENABLE", "1")):
        raise ValueError("NCCL_RAS_ENABLE=0 turns the RAS service off; unset it")
    told = settings.get("NCCL_RAS_ADDR") or DEFAULT_ADDRESS
    name, _, port_text = told.strip().rpartition(":")
    name = name.removeprefix("[").removesuffix("]")
    is_number = port_text.isascii() and port_text.isdecimal() and len(port_text) <= MAX_DIGITS
    port = int(port_text) if is_number else 0
    if not name or not 0 < port < 1 << 16:
        raise _unusable(told, "is not HOST:PORT")
    if name.lower() == "localhost":
        return (Address("::1", port), Address("127.0.0.1", port))
    try:
        host = ipaddress.ip_address(name)
    except ValueError:
        # A name could be anybody's, and asking for it would tell a name server.
        raise _unusable(told, "names its host; a number is needed") from None
    if host.is_unspecified:
        v6 = (Address("::1", port),) if host.version == 6 else ()
        return (*v6, Address("127.0.0.1", port))
    if not is_own_address(str(host)):
        raise _unusable(told, "is no address of this node")
    return (Address(str(host), port),)


def is_own_address(text: str) -> bool:
    """Say whether a number is an address of this node; nothing is sent for that."""
    try:
        host = ipaddress.ip_address(text)
    except ValueError:
        return False
    if host.is_loopback:
        return True
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # The kernel speaks to an address of its own from that very address.
            probe.connect((str(host), 9))
            own = str(probe.getsockname()[0])
    except OSError:
        return False
    return own.partition("%")[0] == str(host).partition("%")[0]


def _is_zero(text: str) -> bool:
    try:
        return int(text[:MAX_DIGITS], 0) == 0
    except ValueError:
        return False


def _unusable(told: str, why: str) -> ValueError:
    shown = _CONTROL.sub("?", told[:MAX_SHOWN])
    return ValueError(f"NCCL_RAS_ADDR={shown} {why}; not asked, give an address of this node")


def _ask(address: Address, deadline: float) -> RasAnswer:
    """Ask until somebody greets; who greets is asked once."""
    for _ in range(MAX_TRIES):
        answer = _try(address, deadline)
        if answer is not None:
            return answer
        if time.monotonic() >= deadline:
            break
    why = "it takes connections and does not answer: its process is stopped, or busy in the kernel"
    raise _NoAnswerError(f"{why}; run `ncclras` once it goes on")


def _try(address: Address, deadline: float) -> RasAnswer | None:
    """Ask over one connection; give None where nobody greets."""
    try:
        with _Line(address, deadline) as line:
            is_json = line.greet()
            # As JSON the service tells all it has; as text only `verbose` names ranks.
            line.send("STATUS" if is_json else "VERBOSE STATUS")
            return line.answer()
    except TimeoutError:
        return None
    except ConnectionRefusedError:
        why = (
            "nobody listens there: NCCL is older than 2.24 or has made no group yet, or it "
            "runs in another network namespace, or its script chose NCCL_RAS_ADDR itself"
        )
        raise _NoAnswerError(why) from None
    except OSError as error:
        raise _NoAnswerError(error.strerror or str(error)) from None


class _Line:
    """One connection."""

    def __init__(self, address: Address, deadline: float) -> None:
        self._address = address
        self._deadline = deadline
        self._greeted_until = min(deadline, time.monotonic() + GREETING_TIMEOUT_S)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._received = bytearray()

    def __enter__(self) -> _Line:
        try:
            self._wait(self._greeted_until)
            self._socket.connect((self._address.host, self._address.port))
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def greet(self) -> bool:
        """Agree on the protocol, the service's patience and the format; say whether it is JSON."""
        self.send(f"CLIENT PROTOCOL {PROTOCOL}")
        said = self._read_line()
        if not said.upper().startswith("SERVER PROTOCOL "):
            shown = _CONTROL.sub("?", said[:MAX_SHOWN])
            raise _NoAnswerError(f"no RAS service, it says {shown!r}")
        self.send(f"TIMEOUT {SERVICE_TIMEOUT_S}")
        self._read_line()  # one that refuses waits as long as it likes: there is a deadline
        self.send("SET FORMAT json")
        return self._read_line().upper() == "OK"  # before 2.28.7: an error

    def send(self, command: str) -> None:
        self._socket.sendall(command.encode() + b"\n")

    def answer(self) -> RasAnswer:
        """Read what comes until the service hangs up."""
        reason = ""
        while True:
            try:
                self._wait(self._deadline)
                chunk = self._socket.recv(1 << 16)
            except TimeoutError:
                reason = "it did not end its answer in time: it waits for processes that hang"
                break
            except OSError as error:
                reason = f"it broke off: {error.strerror or error}"
                break
            if not chunk:
                break
            self._received += chunk
            if len(self._received) > MAX_ANSWER_BYTES:
                reason = f"its answer has more than {MAX_ANSWER_BYTES:,} bytes"
                break
        if not self._received:
            raise _NoAnswerError(reason or "it hung up without an answer")
        return RasAnswer(
            text=_plain(bytes(self._received[:MAX_ANSWER_BYTES])),
            address=str(self._address),
            reason=reason and f"{reason}; run `ncclras` for the whole",
        )

    def _read_line(self) -> str:
        while b"\n" not in self._received:
            if len(self._received) > MAX_LINE_BYTES:
                raise _NoAnswerError("no RAS service, its lines have no end")
            self._wait(self._greeted_until)
            chunk = self._socket.recv(MAX_LINE_BYTES)
            if not chunk:
                raise _NoAnswerError("it hung up without an answer")
            self._received += chunk
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        return line.decode("utf-8", "replace").strip()

    def _wait(self, until: float) -> None:
        remaining = until - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(remaining)


def _plain(raw: bytes) -> str:
    """Give text that does nothing to a terminal."""
    return _CONTROL.sub("?", raw.decode("utf-8", "replace").replace("\r\n", "\n"))
