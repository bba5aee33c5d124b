"""The variables that say where telemetry goes."""

from __future__ import annotations

import pytest

from tracecore_sidecar.forward.settings import load_settings

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


def problem(**variables: str) -> str:
    """The one problem all three signals have."""
    names = {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in variables.items()}
    settings, problems = load_settings({**ENDPOINT, **names})
    assert settings == {}
    assert len(problems) == 3
    return problems[0]


def test_nothing_is_forwarded_unless_asked_for() -> None:
    """An empty environment gives no settings and no problem."""
    assert load_settings({"OTEL_EXPORTER_OTLP_HEADERS": "a=b"}) == ({}, [])


def test_the_common_endpoint_gets_the_signals_path() -> None:
    """The path of each signal is appended, also behind a path and a slash."""
    settings, _ = load_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c.example/otlp/"})
    assert {name: s.target for name, s in settings.items()} == {
        "metrics": "/otlp/v1/metrics",
        "logs": "/otlp/v1/logs",
        "traces": "/otlp/v1/traces",
    }
    assert settings["logs"].place == "https://c.example:443"
    assert settings["logs"].tls is not None


def test_a_signals_own_endpoint_is_used_as_it_is() -> None:
    """No path is appended to it, and the others are not forwarded."""
    url = "http://[::1]:8428/opentelemetry/v1/metrics?x=1"
    settings, _ = load_settings({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": url})
    assert list(settings) == ["metrics"]
    metrics = settings["metrics"]
    assert (metrics.host, metrics.port) == ("::1", 8428)
    assert metrics.target == "/opentelemetry/v1/metrics?x=1"
    assert metrics.place == "http://[::1]:8428"


def test_headers_are_decoded_and_not_shown() -> None:
    """Values are URL-encoded; a repr shows none of them."""
    settings, _ = load_settings(
        ENDPOINT
        | {
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20s3cret, x-tenant=a",
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "x-tenant=b",
        }
    )
    assert settings["metrics"].headers == {"authorization": "Bearer s3cret", "x-tenant": "a"}
    assert settings["logs"].headers == {"x-tenant": "b"}
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10.0), ("0.5", 0.5), ("2500", 2.5), ("10000", 10.0), ("9e9", 60.0)]
)
def test_a_timeout_is_seconds_or_milliseconds(text: str, seconds: float) -> None:
    """Below 100 it is Python's seconds, from there on the specification's milliseconds."""
    settings, _ = load_settings(ENDPOINT | {"OTEL_EXPORTER_OTLP_TIMEOUT": text})
    assert settings["logs"].timeout_s == seconds


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PROTOCOL": "grpc"}, "grpc"),
        ({"COMPRESSION": "deflate"}, "deflate"),
        ({"TIMEOUT": "soon"}, "soon"),
        ({"TIMEOUT": "-1"}, "-1"),
        ({"HEADERS": "a=b%0d%0aEvil: 1"}, "item 1"),
        ({"HEADERS": "a=b,content-length=3"}, "item 2"),
        ({"HEADERS": "no value"}, "item 1"),
        ({"ENDPOINT": "collector:4317"}, "http://host:port"),
        ({"ENDPOINT": "http://c:99999"}, "not a URL"),
        ({"ENDPOINT": "http://me:pw@c"}, "HEADERS"),
        ({"ENDPOINT": "https://c", "CERTIFICATE": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({"ENDPOINT": "https://c", "CLIENT_KEY": "/nowhere/key.pem"}, "go together"),
    ],
)
def test_what_cannot_be_done_as_asked_is_not_done(variables: dict[str, str], said: str) -> None:
    """A bad setting turns forwarding off and names it."""
    assert said in problem(**variables)


def test_a_bad_header_is_not_shown() -> None:
    """A header that cannot be read may be a secret."""
    assert "s3cret" not in problem(HEADERS="s3cret")
