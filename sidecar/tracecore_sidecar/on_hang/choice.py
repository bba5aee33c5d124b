"""The value of ``--on-hang``: one of three words, or a command line.

A command line is split as a shell would split it and run without one: whoever wants a shell writes
``sh -c '...'``.
"""

from __future__ import annotations

import difflib
import shlex
import shutil
from dataclasses import dataclass
from enum import Enum

from tracecore_train.errors import ConfigError

PLACEHOLDER = "{bundle}"
"""Stands in a command line where the bundle's path belongs; without it the path comes last."""
MAX_CHARS = 4_096
_EXAMPLE = "give report, dump, abort, or a command line such as 'notify-team {bundle}'"


class Action(str, Enum):
    """What is done when a hang was found and its bundle is in place."""

    REPORT = "report"
    """Nothing more than the verdict and the bundle."""
    DUMP = "dump"
    """Leave the flight recorders where torch's own analyzer can be pointed at, too."""
    ABORT = "abort"
    """End this attempt's ranks, so that torchrun restarts it."""
    COMMAND = "command"
    """Run a command line with the bundle's path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnHang:
    """A checked value of ``--on-hang``."""

    action: Action
    words: tuple[str, ...] = ()
    """The command line, as it was split."""

    def command(self, bundle: str) -> list[str]:
        """Give the command line with the path of the bundle in it."""
        if any(PLACEHOLDER in word for word in self.words):
            return [word.replace(PLACEHOLDER, bundle) for word in self.words]
        return [*self.words, bundle]


def parse_on_hang(text: str) -> OnHang:
    """Read a value; raise :class:`ConfigError` naming it and what is accepted."""
    shown = repr(text[:100])
    if len(text) > MAX_CHARS or "\0" in text:
        raise ConfigError(f"{shown} is no command line of at most {MAX_CHARS} characters")
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{shown} cannot be split into words: {error}; {_EXAMPLE}") from None
    if not words or not words[0]:
        raise ConfigError(f"{shown} names nothing to do; {_EXAMPLE}")
    own = {action.value: action for action in Action if action is not Action.COMMAND}
    if len(words) == 1 and words[0] in own:
        return OnHang(action=own[words[0]])
    if words[0] in own:
        raise ConfigError(f"{shown}: {words[0]} stands alone and takes nothing; {_EXAMPLE}")
    if PLACEHOLDER not in words[0] and shutil.which(words[0]) is None:
        close = difflib.get_close_matches(words[0], own, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"{shown}: there is no program {words[0]!r}; {hint}{_EXAMPLE}")
    return OnHang(action=Action.COMMAND, words=words)
