"""What an operator sees: a log line per request, metrics, spans. Never content: no text, no scope, no query string."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentmem.records import Reply

log = logging.getLogger("agentmem.access")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The figures of ``/metrics``, in a registry of their own."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "agentmem_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "agentmem_request_seconds",
            "From a request's first byte to its answer's last.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.waited = Histogram(
            "agentmem_queue_seconds", "Wait for the model.", buckets=_SECONDS, registry=self.registry
        )
        self.replies = Counter("agentmem_replies", "Replies by how they ended.", ["finish"], registry=self.registry)
        self.tokens = Counter(
            "agentmem_tokens", "Tokens in prompts, replies and memories read.", ["kind"], registry=self.registry
        )
        self.reads = Counter("agentmem_memories_read", "Memories that replies attended to.", registry=self.registry)
        self.waiting = Gauge("agentmem_queue_jobs", "Requests that wait for the model.", registry=self.registry)
        self.waiting.set_function(waiting)

    def replied(self, reply: Reply) -> None:
        """Count a reply."""
        self.replies.labels(reply.finish_reason).inc()
        self.tokens.labels("prompt").inc(reply.usage.prompt_tokens)
        self.tokens.labels("completion").inc(reply.usage.completion_tokens)
        self.tokens.labels("memory").inc(reply.usage.memory_tokens)
        self.reads.inc(len(reply.memories))


class Observed:
    """ASGI middleware: counts, times, traces and logs each request, and names it in the header ``x-request-id``."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parent = propagate.extract({key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]})
        tracer = trace.get_tracer("agentmem")
        with tracer.start_as_current_span(scope["method"], parent, SpanKind.SERVER) as span:
            await self._observe(scope, receive, send, span)

    async def _observe(self, scope: Scope, receive: Receive, send: Send, span: Span) -> None:
        began, status, name = time.monotonic(), 0, uuid4().hex

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            seconds = time.monotonic() - began
            # The route's template, not the path, which may hold a session's name; and no endless labels from scanners.
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, route, status or "none").inc()
            self._metrics.seconds.labels(route).observe(seconds)
            span.update_name(f"{method} {route}")
            span.set_attributes({"http.request.method": method, "http.route": route})
            span.set_attribute("http.response.status_code", status)
            caller = scope.get("state", {}).get("caller")
            seen = {"request": name, "method": method, "route": route, "status": status, "caller": caller}
            log.info("request", extra={"seen": {**seen, "ms": round(1000 * seconds, 1)}})


_METHODS = {"GET", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS"}


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. An exception is told by its kind alone: its message may quote what was said."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"at": at, "level": record.levelname.lower(), "logger": record.name}
        line["message"] = record.getMessage()
        line |= getattr(record, "seen", {})
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__qualname__
        return json.dumps(line)


@contextmanager
def span(name: str, **attributes: str | int | float) -> Iterator[None]:
    """A span around a step. Where it goes is up to who set up the OpenTelemetry SDK; without the SDK, nowhere."""
    with trace.get_tracer("agentmem").start_as_current_span(name, attributes=attributes):
        yield
