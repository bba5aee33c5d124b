"""What a user would put around a training loop instead of TraceCore.

Each as its documentation shows it, with defaults where it has them. A watch is entered before the
first step; leaving it may write and send what is still there, which is not timed.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import nn

PROFILER_SCHEDULE = {"wait": 45, "warmup": 2, "active": 3, "repeat": 0}
"""Three of every fifty steps are recorded and written, for as long as the training lasts."""
METRICS_INTERVAL_MS = 1_000
"""As often as a rank of TraceCore hands over."""


class Watch(Protocol):
    """What the loop calls."""

    def batches(self, loader: Iterable[Any]) -> Iterable[Any]:
        """Give the batches of a loader."""

    def step(self, model: nn.Module, number: int) -> AbstractContextManager[object]:
        """Enclose a step."""


class Nothing:
    """No watch."""

    _step: AbstractContextManager[object] = contextlib.nullcontext()

    def batches(self, loader: Iterable[Any]) -> Iterable[Any]:
        """Give the loader itself."""
        return loader

    def step(self, model: nn.Module, number: int) -> AbstractContextManager[object]:
        """Do nothing."""
        return self._step


@contextlib.contextmanager
def nothing(output: Path) -> Iterator[Watch]:
    """Watch nothing."""
    yield Nothing()


@contextlib.contextmanager
def traceml(output: Path) -> Iterator[Watch]:
    """Watch with TraceML, whose launcher must have been used."""
    import traceml_ai  # type: ignore[import-not-found,unused-ignore]

    class TraceMl(Nothing):
        def step(self, model: nn.Module, number: int) -> AbstractContextManager[object]:
            enclosed: AbstractContextManager[object] = traceml_ai.trace_step(model)
            return enclosed

    traceml_ai.init(mode="auto")
    yield TraceMl()


@contextlib.contextmanager
def profiler(output: Path) -> Iterator[Watch]:
    """Watch with torch.profiler, always on: CPU activities, a trace file per window."""
    from torch import profiler as torch_profiler

    profile = torch_profiler.profile(
        activities=[torch_profiler.ProfilerActivity.CPU],
        schedule=torch_profiler.schedule(**PROFILER_SCHEDULE),
        on_trace_ready=torch_profiler.tensorboard_trace_handler(str(output)),
    )

    class Profiler(Nothing):
        @contextlib.contextmanager
        def step(self, model: nn.Module, number: int) -> Iterator[None]:
            yield
            profile.step()

    with profile:
        yield Profiler()


@contextlib.contextmanager
def otel(output: Path) -> Iterator[Watch]:
    """Record the points of TraceCore with the OTel SDK: a span and a histogram per step and batch.

    To ``OTEL_EXPORTER_OTLP_ENDPOINT``, spans in the SDK's default batches.
    """
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "training", "rank": int(os.environ["RANK"])})
    spans = TracerProvider(resource=resource)
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(), METRICS_INTERVAL_MS)
    meters = MeterProvider(resource=resource, metric_readers=[reader])
    tracer, meter = spans.get_tracer("benchmark"), meters.get_meter("benchmark")
    step_seconds = meter.create_histogram("step.duration", "s")
    input_seconds = meter.create_histogram("input.duration", "s")

    class Otel:
        def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
            batches = iter(loader)
            while True:
                began = time.monotonic()
                with tracer.start_as_current_span("input"):
                    batch = next(batches, None)
                input_seconds.record(time.monotonic() - began)
                if batch is None:
                    return
                yield batch

        @contextlib.contextmanager
        def step(self, model: nn.Module, number: int) -> Iterator[None]:
            began = time.monotonic()
            with tracer.start_as_current_span("step", attributes={"step": number}):
                yield
            step_seconds.record(time.monotonic() - began)

    yield Otel()
    spans.shutdown()
    meters.shutdown()


WATCHES: dict[str, Callable[[Path], AbstractContextManager[Watch]]] = {
    "nothing": nothing,
    "traceml": traceml,
    "profiler": profiler,
    "otel": otel,
}
