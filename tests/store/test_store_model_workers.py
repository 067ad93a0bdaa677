"""Several language models on one PostgreSQL store: one of them is killed in the middle of a turn, nothing is lost."""

from __future__ import annotations

import signal

import servers
from store_world import python
from stream_world import kept_bytes
from typer.testing import CliRunner

from agentmem import MemoryLLM
from agentmem.cli import app
from agentmem.recipes import InfLLM
from agentmem.records import Scope
from agentmem.streaming import StreamConversation

WORKER = """
import sys
from agentmem import MemoryLLM

with MemoryLLM(store=sys.argv[1], max_new_tokens=8) as llm:
    dialogue = llm.conversation(user="ada", session="doomed")
    for number in range(1_000_000):
        dialogue.chat(f"The code of door {number} is {4711 + number}.")
        print(number, flush=True)
"""


def test_a_model_worker_killed_in_mid_turn_loses_nothing_that_was_acknowledged() -> None:
    address, bucket = servers.empty_database(), servers.empty_bucket()
    with MemoryLLM(store=address, kv_store=bucket, max_new_tokens=8) as llm:
        doomed = python(WORKER, address)
        steady = llm.conversation(user="ada", session="steady")
        assert doomed.stdout is not None
        assert doomed.stderr is not None
        acknowledged = 0
        for _ in doomed.stdout:
            steady.chat(f"The code of gate {acknowledged} is {815 + acknowledged}.")
            acknowledged += 1
            if acknowledged == 3:
                doomed.send_signal(signal.SIGKILL)
        doomed.wait()
        doomed.stdout.close()
        doomed.stderr.close()
        assert llm.flush(60)
        texts = [memory.text for memory in steady.memories.list(limit=1000, role="user")]
        for said in range(acknowledged):
            assert f"The code of door {said} is {4711 + said}." in texts
            assert f"The code of gate {said} is {815 + said}." in texts
        assert len(texts) == len(set(texts)) <= 2 * acknowledged + 1  # one may be stored and not yet acknowledged
        assert llm.store.verify().ok
        reply = llm.conversation(user="ada").chat("What is the code of door 2?")
        assert any("door 2" in read.memory.text for read in reply.memories)


RECIPE = InfLLM(n_init=8, n_local=64, block_size=16, top_k=2, n_repr=2, step=32)
STREAMER = """
import sys
from agentmem import MemoryLLM
from agentmem.recipes import InfLLM

recipe = InfLLM(n_init=8, n_local=64, block_size=16, top_k=2, n_repr=2, step=32)
with MemoryLLM(store=sys.argv[1], recipe=recipe, max_new_tokens=8) as llm:
    dialogue = llm.conversation(user="ada", session="s")
    for number in range(1_000_000):
        reply = dialogue.chat(f"The code of door {number} is {4711 + number}. " + "And so on and on. " * 12)
        print(dialogue.stream_tokens, *reply.notes, flush=True)
"""


def test_a_stream_goes_on_in_another_worker_where_the_one_that_was_killed_left_it() -> None:
    address = servers.empty_database()
    doomed = python(STREAMER, address)
    assert doomed.stdout is not None
    assert doomed.stderr is not None
    said = [doomed.stdout.readline() for _ in range(4)]
    doomed.send_signal(signal.SIGKILL)
    said += doomed.stdout.readlines()
    doomed.wait()
    doomed.stdout.close()
    doomed.stderr.close()
    assert [line.split()[1:] for line in said] == [[]] * len(said)  # no notes
    servers.wait_for_the_dead(address)
    with MemoryLLM(store=address, recipe=RECIPE, max_new_tokens=8) as llm:
        dialogue = llm.conversation(user="ada", session="s")
        before = kept_bytes(llm.store)
        assert before > 0
        assert dialogue.chat("What is the code of door 0?").notes == ()  # nothing had to be encoded again
        assert isinstance(dialogue, StreamConversation)
        assert dialogue.stream_tokens > int(said[-1].split()[0])
        assert kept_bytes(llm.store) >= before
        assert llm.store.verify().problems == ()
        assert llm.store.scope(Scope(user="ada")).forget_scope().ids
        assert llm.store.stats().streams == 0


def test_the_command_takes_an_address_and_never_prints_its_password() -> None:
    address = servers.empty_database()
    with MemoryLLM(store=address) as llm:
        llm.conversation(user="ada").memories.add("My dog is called Biscuit.")
    where, user = ["--store", address], ["--user", "ada"]
    for command in (
        ["memories", "stats", *where, *user],
        ["memories", "list", *where, *user],
        ["memories", "verify", *where],
        ["doctor", *where],
        ["store", "migrate", address],
        ["store", "vacuum", address],
    ):
        outcome = CliRunner().invoke(app, command)
        assert outcome.exit_code == 0, outcome.output
        assert "secret" not in outcome.output
    assert "nothing that was forgotten is in the files of postgresql://" in outcome.output
    assert "Biscuit" in CliRunner().invoke(app, ["memories", "list", "--store", address, "--user", "ada"]).output
