"""The page behind ``GET /metrics``: what it is made of, and its text.

A page is made on the event loop, where the state does not change meanwhile, and at most once a
second: a scraper in a hurry gets the same text again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.core import Metric
    from starlette.requests import Request

MIN_INTERVAL_NS = 1_000_000_000
"""Age up to which a page is given again."""
OPENMETRICS = "application/openmetrics-text"


class Page:
    """Makes the page in either format and keeps it for a moment."""

    def __init__(
        self, collect: Callable[[int], Sequence[Metric]], *, clock: Callable[[], int]
    ) -> None:
        """``collect(now_ns)`` gives every family; ``clock`` is monotonic nanoseconds."""
        self._collect = collect
        self._clock = clock
        self._made_ns = 0
        self._texts: dict[bool, bytes] = {}
        self._families: Sequence[Metric] = ()

    def text(self, accept: str) -> tuple[bytes, str]:
        """Give the page and its content type, as the ``Accept`` header asks."""
        now_ns = self._clock()
        if not self._texts or now_ns - self._made_ns >= MIN_INTERVAL_NS:
            self._families, self._made_ns, self._texts = self._collect(now_ns), now_ns, {}
        is_open = _wants_openmetrics(accept)
        if is_open not in self._texts:
            make = openmetrics.generate_latest if is_open else generate_latest
            self._texts[is_open] = make(_Families(self._families))
        return self._texts[is_open], (
            openmetrics.CONTENT_TYPE_LATEST if is_open else CONTENT_TYPE_PLAIN_0_0_4
        )


def metrics_route(page: Page) -> Route:
    """Give the route that serves the page."""

    async def metrics(request: Request) -> Response:
        text, content_type = page.text(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    return Route("/metrics", metrics, methods=["GET"])


class _Families(Collector):
    """What both writers of the format take."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _wants_openmetrics(accept: str) -> bool:
    """Tell whether the header names OpenMetrics 1.0 or no version of it.

    The library's own negotiation raises on a version that is no number.
    """
    for part in accept.split(","):
        name, *parameters = (item.strip() for item in part.split(";"))
        versions = [p.partition("=")[2] for p in parameters if p.startswith("version=")]
        if name.lower() == OPENMETRICS and (not versions or versions[0] == "1.0.0"):
            return True
    return False
