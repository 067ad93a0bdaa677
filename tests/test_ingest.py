"""Knowledge bases: files become references, once, whatever interrupts; compression trains codebooks and keeps them."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from agentmem import InvalidInput, MemoryLLM, Role
from agentmem.cli import app
from agentmem.ingest import TAG, find_files, reference_id
from agentmem.model.kv import KV
from agentmem.packing import Packing
from agentmem.store import Store, quantiser
from agentmem.store.codebooks import load_codebooks
from agentmem.training.references import filler, knowledge_base

FACTS = knowledge_base(60, seed=5)


def write_base(folder: Path, n: int = 60) -> Path:
    rng = random.Random(0)
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"text": f"{f.stated(rng)} {filler(rng, f.town)} {filler(rng, f.town)}"}) for f in FACTS[:n]]
    (folder / "towns.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run(*args: str) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(app, list(args), env={"COLUMNS": "120"})


def llm(path: Path, **options: object) -> MemoryLLM:
    return MemoryLLM(store=path, recipe="memory3", **options)


# ------------------------------------------------------------------------------------------------------------ the files


def test_text_markdown_and_json_lines_become_references_that_recall_finds(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "deep").mkdir(parents=True)
    (base / "one.txt").write_text("The harbour master of Velnor is Tarik.\n", encoding="utf-8")
    (base / "deep" / "two.md").write_text(
        "# Cinogund\n\n" + "The feast of Cinogund is stoshoat. " * 40, encoding="utf-8"
    )
    (base / "three.jsonl").write_text('{"text": "The gate code of Brellin is K7-402."}\n\n', encoding="utf-8")
    (base / "picture.png").write_bytes(b"\x89PNG")
    with llm(tmp_path / "m.db") as one:
        done = one.ingest(base, user="ada")
        memories = one.conversation(user="ada").memories
        stored = memories.list(limit=100, sort="created_at")
        assert done.documents == 3
        assert done.references == done.added == done.encoded == len(stored) > 3
        assert all(memory.n_tokens <= 128 and memory.role is Role.SYSTEM and memory.tags == (TAG,) for memory in stored)
        assert all(memory.tier == "warm" and memory.id == reference_id(memory.text) for memory in stored)
        places = {(memory.meta["source"], memory.meta.get("line")) for memory in stored}
        assert places == {("one.txt", None), ("deep/two.md", None), ("three.jsonl", 1)}
        (hit, *_) = memories.search("What is the gate code of Brellin?", top_k=1)
        assert hit.memory.text == "The gate code of Brellin is K7-402."
        reply = one.conversation(user="ada").chat("Who runs the harbour of Velnor?", max_new_tokens=4)
        assert "The harbour master of Velnor is Tarik." in [read.memory.text for read in reply.memories]
        assert not any(read.rebuilt for read in reply.memories)
        assert one.conversation(user="bob").memories.list() == []


def test_the_same_text_twice_is_one_reference_and_a_second_run_adds_nothing(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", 20)
    (base / "again.jsonl").write_bytes((base / "towns.jsonl").read_bytes())
    with llm(tmp_path / "m.db") as one:
        first = one.ingest([base], user="ada")
        again = one.ingest([base / "towns.jsonl", base], user="ada")
        ids = {memory.id for memory in one.conversation(user="ada").memories.list(limit=100)}
    assert (first.documents, first.references, first.added, first.encoded) == (40, 20, 20, 20)
    assert (again.references, again.added, again.encoded) == (20, 0, 0)
    assert len(ids) == 20


def test_a_new_line_adds_one_reference(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", 10)
    with llm(tmp_path / "m.db") as one:
        one.ingest(base, user="ada")
        with (base / "towns.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"text": "The river of Oslo is Zub."}\n')
        assert one.ingest(base, user="ada").added == 1


def test_cold_references_are_encoded_at_their_first_recall(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", 12)
    with llm(tmp_path / "m.db", threshold=None) as one:
        assert one.ingest(base, user="ada", warm=False).encoded == 0
        chat = one.conversation(user="ada")
        assert all(memory.tier == "cold" for memory in chat.memories.list())
        reply = chat.chat(FACTS[3].asked(random.Random(0)), max_new_tokens=2)
        assert reply.memories
        assert all(read.rebuilt for read in reply.memories)
        one.flush()
        warm = {memory.id for memory in chat.memories.list(tier="warm", limit=50, role=Role.SYSTEM)}
        assert {read.memory.id for read in reply.memories} <= warm
        assert one.ingest(base, user="ada").encoded == 12 - len(warm & {read.memory.id for read in reply.memories})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.jsonl", b'{"text": "fine"}\n{"text": 7}\n', r'line 2 of .*bad\.jsonl is not an object with a "text"'),
        ("bad.jsonl", b'{"text": "fine"}\nnot json\n', r"line 2 of .*bad\.jsonl is not JSON"),
        ("bad.jsonl", b'["fine"]\n', "line 1"),
        ("bad.jsonl", b'{"text": " "}\n', "line 1"),
        ("bad.txt", b"caf\xe9", "cannot be read as UTF-8"),
        ("bad.txt", b"a\x00b", "NUL"),
        ("bad.pdf", b"%PDF", "is not one of .txt, .md, .jsonl"),
    ],
)
def test_bad_files_are_refused_before_anything_is_stored(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    good = write_base(tmp_path / "base", 3)
    (tmp_path / name).write_bytes(content)
    with llm(tmp_path / "m.db") as one:
        with pytest.raises(InvalidInput, match=message):
            one.ingest([good, tmp_path / name], user="ada")
        assert one.conversation(user="ada").memories.list() == []


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "empty", "holds no .txt"), (tmp_path / "none", "there is no file or folder")):
        with pytest.raises(InvalidInput, match=message):
            find_files([path])
    with llm(tmp_path / "m.db") as one, pytest.raises(InvalidInput, match="user is empty"):
        one.ingest(tmp_path, user="")


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command_reports_and_repeats_without_effect(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", 16)
    command = ["ingest", str(base), "--store", str(tmp_path / "m.db"), "--user", "ada"]
    first = subprocess.run(
        [sys.executable, "-m", "agentmem", *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert first.returncode == 0, first.stderr
    assert "16 references in 16 documents: 16 new, 16 encoded" in first.stderr
    second = run(*command, "--json")
    assert json.loads(second.stdout) == {
        "documents": 16, "references": 16, "added": 0, "encoded": 0, "compressed": None,
    }  # fmt: skip
    cold = run("ingest", str(base), "--store", str(tmp_path / "c.db"), "--cold")
    assert "16 new, 0 encoded, none of them yet (--cold)" in cold.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "there is no file or folder"),
        (["base", "--cold", "--compress"], "--cold encodes nothing"),
        (["base", "--user", ""], "--user is empty"),
        (["base", "--recipe", "infllm"], "keeps a stream"),
    ],
)
def test_bad_options_end_with_an_error_and_no_store(tmp_path: Path, options: list[str], message: str) -> None:
    write_base(tmp_path / "base", 2)
    options = [str(tmp_path / one) if one in ("base", "nothing") else one for one in options]
    outcome = run("ingest", "--store", str(tmp_path / "m.db"), *options)
    assert outcome.exit_code == 1
    assert message in outcome.stderr


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, how: signal.Signals) -> None:
    """Many references, stopped in the middle: nothing is half there, and the next run adds exactly the rest."""
    rng = random.Random(1)
    lines = [json.dumps({"text": f"{f.stated(rng)} {filler(rng, f.town)}"}) for f in knowledge_base(300, seed=6)]
    (tmp_path / "big.jsonl").write_text("\n".join(lines), encoding="utf-8")
    store = tmp_path / "m.db"
    command = [sys.executable, "-c", _DEFAULT_SIGINT, "ingest", str(tmp_path / "big.jsonl"), "--store", str(store)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while _stored(store) < 64:
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(how)
    child.communicate(timeout=60)
    assert child.returncode == (-9 if how == signal.SIGKILL else 130)
    with Store.open(store) as after:
        assert after.verify().ok
    before = _stored(store)
    assert 64 <= before < 300
    with llm(store) as one:
        done = one.ingest(tmp_path / "big.jsonl", user="me")
        assert (done.references, done.added) == (300, 300 - before)
        assert done.encoded >= done.added
        stored = one.conversation(user="me").memories
        assert len(stored) == 300
        assert stored.stats().cold == 0


_DEFAULT_SIGINT = (
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "sys.argv[0] = 'agentmem'; runpy.run_module('agentmem', run_name='__main__')"
)


def _stored(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT count(*) FROM memory").fetchone()[0])
    except sqlite3.OperationalError:  # not made yet
        return 0


# ---------------------------------------------------------------------------------------------------------- compression


@pytest.fixture
def small_codebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training with fewer vectors: 60 references make 960 per layer. The rule itself is tested below."""
    monkeypatch.setattr(quantiser, "LEAST", 300)
    monkeypatch.setattr(quantiser, "ROUNDS", 2)


@pytest.mark.usefixtures("small_codebooks")
def test_compressed_memories_are_read_after_a_restart_and_new_ones_join_them(tmp_path: Path) -> None:
    base, path = write_base(tmp_path / "base"), tmp_path / "m.db"
    steps: list[str] = []
    with llm(path, codec="pq", threshold=None) as one:
        one.ingest(base, user="ada")
        sizes = {memory.id: memory.kv_bytes for memory in one.conversation(user="ada").memories.list(limit=100)}
        done = one.compress(user="ada", advance=lambda what, done, total: steps.append(what))
        again = one.compress(user="ada")
    assert min(sizes.values()) > 8192
    assert set(steps) == {"training codebooks", "compressing"}
    assert done.memories == again.memories == 60
    assert done.bytes_before == sum(sizes.values())
    # 2 layers, 2 KV heads, 8 tokens, keys and values: 64 vectors of 16 bytes, 32 places, and the header
    assert 60 * 1056 < done.bytes_after < 60 * 1500
    assert again.bytes_after == done.bytes_after
    assert 0 < done.key_error < 0.5
    assert 0 < done.value_error < 0.5
    with llm(path, codec="pq", threshold=None) as one:
        chat = one.conversation(user="ada")
        reply = chat.chat(FACTS[7].asked(random.Random(0)), max_new_tokens=2)
        assert reply.memories
        assert not any(read.rebuilt for read in reply.memories)
        assert reply.notes == ()
        (tmp_path / "new.txt").write_text("The river of Oslo is Zub, and nobody swims in it.", encoding="utf-8")
        one.ingest(tmp_path / "new.txt", user="ada")
        (new,) = chat.memories.search("river Oslo Zub", top_k=1)
        assert new.memory.kv_bytes < 1500


@pytest.mark.usefixtures("small_codebooks")
def test_a_process_that_was_open_meanwhile_reads_what_another_one_compressed(tmp_path: Path) -> None:
    base, path = write_base(tmp_path / "base"), tmp_path / "m.db"
    with llm(path, threshold=None) as reader:
        with llm(path, codec="pq") as one:
            one.ingest(base, user="ada")
            one.compress(user="ada")
        reply = reader.conversation(user="ada").chat(FACTS[7].asked(random.Random(0)), max_new_tokens=2)
        assert reply.memories
        assert not any(read.rebuilt for read in reply.memories)


@pytest.mark.usefixtures("small_codebooks")
def test_lost_codebooks_cost_a_new_encoding_and_nothing_else(tmp_path: Path) -> None:
    base, path = write_base(tmp_path / "base"), tmp_path / "m.db"
    with llm(path, codec="pq") as one:
        one.ingest(base, user="ada")
        one.compress(user="ada")
        fingerprint = one.writer.fingerprint
    for damage in ("UPDATE codebook SET data = substr(data, 2)", "DELETE FROM codebook"):
        with sqlite3.connect(path) as connection:
            connection.execute(damage)
        with Store.open(path) as store:
            assert load_codebooks(store, fingerprint) is None
        with llm(path, threshold=None) as one:
            chat = one.conversation(user="ada")
            question = FACTS[3 if "UPDATE" in damage else 9].asked(random.Random(0))
            reply = chat.chat(question, max_new_tokens=2)
            assert any(read.rebuilt for read in reply.memories)
            assert any("could not be read" in note for note in reply.notes)


def test_too_little_to_train_on_is_refused(tmp_path: Path) -> None:
    with llm(tmp_path / "m.db", codec="pq") as one:
        with pytest.raises(InvalidInput, match="ingest something first"):
            one.compress(user="ada")
        one.ingest(write_base(tmp_path / "base", 20), user="ada")
        with pytest.raises(InvalidInput, match="at least 10240 vectors per layer, and there are 320"):
            one.compress(user="ada")
        assert load_codebooks(one.store, one.writer.fingerprint) is None


def test_without_faiss_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InvalidInput, match=r"pip install 'agentmem-kv\[pq\]'"):
        quantiser.train_codebooks({0: (torch.randn(20_000, 8), torch.randn(20_000, 8))})


def test_kv_is_packed_plainly_until_there_are_codebooks() -> None:
    packing = Packing("pq", None, "model")
    recipe_kv = torch.randn(2, 8, 16)
    data, codec = packing.pack(KV((recipe_kv,), (recipe_kv,), (3,)))
    assert codec == "bf16"
    assert packing.unpack(data).layers == (3,)
