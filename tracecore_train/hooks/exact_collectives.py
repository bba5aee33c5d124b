"""Every collective as it is issued, counted and timed per group and kind. Off by default.

Torch 2.14 and newer call back before and after each collective (``register_pre_hook`` and
``register_post_hook`` of a process group), those of DDP's reducer and of compiled code included.
That is Python on every collective: about 3 µs each. The time told is that inside the issuing
call; on a device it is not the time the collective takes there.

Torch keeps its list of callbacks without a lock. So a group gets ours on the thread that makes it,
before anything can use it, and never from another thread. The arguments hold live tensors: only
the name and the number of the operation are read from them.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracecore_train.errors import HookUnavailableError
from tracecore_train.guard import MAX_REASON
from tracecore_train.hooks.group_watch import C10D, MAX_TEXT, groups_now, patch_making
from tracecore_train.recorder.clock import now_ns
from tracecore_train.wire.records import CollectiveTotalsRecord

if TYPE_CHECKING:
    from tracecore_train.guard import Guard
    from tracecore_train.hooks.context import HookContext
    from tracecore_train.hooks.patch import Patch
    from tracecore_train.wire.records import Record

HOOK_ID = 0x7472_6163
"""Under which torch keeps our callbacks of a group; users choose their own numbers."""
MAX_KINDS = 1_024
"""Pairs of group and kind that are counted apart; further ones are counted as ``other``."""
MAX_INSIDE = 4_096
"""Calls that may have begun and not returned; a call that fails never returns."""


@dataclass(slots=True)
class _Totals:
    num_issued: int = 0
    issue_ns: int = 0
    longest_ns: int = 0
    last_ns: int = 0
    num_told: int = -1


class ExactCollectivesHook:
    """Counts what torch reports of each collective."""

    name = "exact_collectives"

    def __init__(self, context: HookContext, guard: Guard) -> None:
        """Prepare; nothing is installed yet."""
        self._rank = context.rank
        self._guard = guard
        self._totals: dict[tuple[str, str], _Totals] = {}
        self._inside: dict[tuple[int, int], tuple[tuple[str, str], int]] = {}
        self._groups: weakref.WeakSet[Any] = weakref.WeakSet()
        self._numbers = itertools.count()
        self._patch: Patch | None = None
        self._blind = ""

    def install(self) -> None:
        """Register with every group there is and with each that is made from now on."""
        try:
            c10d = importlib.import_module(C10D)
        except ImportError as error:
            raise HookUnavailableError(f"no torch.distributed ({error})") from None
        group_class = getattr(c10d, "ProcessGroup", None)
        if not hasattr(group_class, "register_pre_hook"):
            raise HookUnavailableError(
                "this torch has no ProcessGroup.register_pre_hook (2.14 and newer do)"
            )
        patch = patch_making(self._guard, self._register)
        try:
            patch.install()
        except AttributeError as error:
            raise HookUnavailableError(f"groups cannot be seen being made ({error})") from None
        self._patch = patch
        for pg in groups_now():
            self._register(pg, 0)

    def uninstall(self) -> None:
        """Take our callbacks back; where torch does not let us they stay and do nothing."""
        if self._patch is not None:
            self._patch.uninstall()
        self._patch = None
        for pg in list(self._groups):
            for name in ("unregister_pre_hook", "unregister_post_hook"):
                with contextlib.suppress(AttributeError, RuntimeError, TypeError):
                    getattr(pg, name)(HOOK_ID)
        self._groups.clear()

    def blind(self) -> list[str]:
        """Give what this hook cannot see."""
        return [f"exact_collectives: {self._blind}"] if self._blind else []

    def poll(self, is_full: bool) -> list[Record]:
        """Give the totals that changed, or all."""
        now = now_ns()
        inside: dict[tuple[str, str], int] = {}
        for kind, _ in list(self._inside.values()):
            inside[kind] = inside.get(kind, 0) + 1
        records: list[Record] = []
        for kind, totals in list(self._totals.items()):
            if is_full or totals.num_issued != totals.num_told or kind in inside:
                totals.num_told = totals.num_issued
                records.append(
                    CollectiveTotalsRecord(
                        time_ns=now,
                        rank=self._rank,
                        pg_name=kind[0],
                        op=kind[1],
                        num_issued=totals.num_issued,
                        issue_ns=totals.issue_ns,
                        longest_issue_ns=totals.longest_ns,
                        last_issue_ns=totals.last_ns,
                        num_inside=inside.get(kind, 0),
                    )
                )
        return records

    def _register(self, pg: Any, _began_ns: int) -> None:
        pg_name = str(pg.group_name)[:MAX_TEXT]
        number = next(self._numbers)
        guard = self._guard

        def before(args: Any) -> None:
            if guard.is_open:
                with guard:
                    self._before(pg_name, number, args)

        def after(args: Any) -> None:
            if guard.is_open:
                with guard:
                    self._after(number, args)

        try:
            pg.register_pre_hook(HOOK_ID, before)
            pg.register_post_hook(HOOK_ID, after)
        except (RuntimeError, TypeError, AttributeError) as error:
            self._blind = f"group {pg_name} takes no callbacks ({error})"[:MAX_REASON]
            return
        self._groups.add(pg)

    def _before(self, pg_name: str, number: int, args: Any) -> None:
        told = args.name
        op = str(getattr(told, "name", told)).lower()[:100]
        kind = (pg_name, op)
        if kind not in self._totals and len(self._totals) >= MAX_KINDS:
            kind = ("", "other")
        self._totals.setdefault(kind, _Totals())
        if len(self._inside) >= MAX_INSIDE:
            self._inside.clear()
        self._inside[number, int(args.op_id)] = (kind, now_ns())

    def _after(self, number: int, args: Any) -> None:
        known = self._inside.pop((number, int(args.op_id)), None)
        if known is None:
            return
        kind, began = known
        now = now_ns()
        totals = self._totals[kind]
        totals.num_issued += 1
        totals.issue_ns += now - began
        totals.longest_ns = max(totals.longest_ns, now - began)
        totals.last_ns = began
