"""Spans where the OpenTelemetry SDK is set up, and figures; neither with a word of what was said."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from server_world import Running, running

from agentmem import MemoryLLM
from agentmem.server.observe import JsonLines


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    """Where the spans of this process go. OpenTelemetry takes one provider per process."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture(scope="module")
def traced(llm: MemoryLLM, spans: InMemorySpanExporter) -> Iterator[Running]:
    with running(llm) as server:
        yield server


def test_a_request_and_its_reply_are_spans_without_content(traced: Running, spans: InMemorySpanExporter) -> None:
    body = {"model": "bundled", "messages": [{"role": "user", "content": "My dog is called Biscuit."}]}
    with traced.http(**{"X-Agentmem-User": "Secretname"}) as http:
        http.post("/v1/chat/completions", json=body).raise_for_status()
        http.get("/v1/memories", params={"tags": "Secrettag"}).raise_for_status()
        http.post("/v1/memories", json={"text": 3}, headers={"X-Request": "x"})
    by_name = {span.name: span for span in spans.get_finished_spans()}
    reply, request = by_name["agentmem.reply"], by_name["POST /v1/chat/completions"]
    assert reply.parent.span_id == request.context.span_id
    assert request.attributes["http.response.status_code"] == 200
    told = " ".join(span.to_json() for span in spans.get_finished_spans())
    for secret in ("Biscuit", "Secretname", "Secrettag"):
        assert secret not in told


def test_figures_count_what_happened(traced: Running) -> None:
    with traced.http() as http:
        text = http.get("/metrics").text
    for name in ("requests_total", "request_seconds_bucket", "queue_seconds_count", "tokens_total", "memories_read"):
        assert f"agentmem_{name}" in text
    assert 'kind="completion"' in text
    assert 'route="/v1/chat/completions"' in text


def test_a_log_line_is_json_and_tells_no_message_of_an_exception() -> None:
    try:
        raise ValueError("a secret")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "it %s", ("failed",), sys.exc_info())
    line = json.loads(JsonLines().format(record))
    assert line["message"] == "it failed"
    assert line["exception"] == "ValueError"
    assert "secret" not in json.dumps(line)
