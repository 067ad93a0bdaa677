"""Requests made from the schema: whatever is sent, the server answers, in the form that its schema promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance
from server_world import Running, running

from agentmem import MemoryLLM
from agentmem.server.limits import Limits


@schemathesis.serializer("application/jsonl")
def lines(context: schemathesis.SerializationContext, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store = tmp_path_factory.mktemp("fuzz") / "memory.db"
    with MemoryLLM(store=store, max_new_tokens=2) as llm, running(llm, limits=Limits(rate=None)) as server:
        yield server


def test_whatever_is_sent_is_answered(fuzzed: Running) -> None:
    schema = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    tried: Counter[str] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(
                max_examples=8,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def answered(case: schemathesis.Case) -> None:
                tried[case.operation.label] += 1
                if isinstance(case.body, dict) and "model" in case.body:
                    case.body["model"] = "bundled"  # past the first check
                case.call_and_validate(checks=[not_a_server_error, response_schema_conformance], timeout=60)

            # Of a request that takes nothing, nothing can be wrong.
            with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():
                answered()
    assert len(tried) > 15
    assert len(tried) == sum(1 for _ in schema.get_all_operations())


def test_the_schema_names_every_call(fuzzed: Running) -> None:
    with fuzzed.http() as http:
        schema = http.get("/openapi.json").json()
    calls = [call for path in schema["paths"].values() for call in path.values()]
    names = [call["operationId"] for call in calls]
    assert len(set(names)) == len(names)
    assert all(call.get("summary") for call in calls)
    assert all("200" in call["responses"] or "201" in call["responses"] for call in calls)
