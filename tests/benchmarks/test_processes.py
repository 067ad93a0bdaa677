import os

import pytest

from benchmarks.processes import WorkerFailed, lines_of


def worker(tmp_path, monkeypatch, code):
    """Make ``python -m smoke_worker`` run this code."""
    (tmp_path / "smoke_worker.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lines_of("smoke_worker", "one", "two", threads=1)


def test_lines_come_as_records_from_another_process(tmp_path, monkeypatch):
    code = "import json, os, sys\nprint(json.dumps([sys.argv[1:], os.getpid(), os.environ['OMP_NUM_THREADS']]))\n"
    ((arguments, pid, threads),) = worker(tmp_path, monkeypatch, code)
    assert arguments == ["one", "two"]
    assert pid != os.getpid()
    assert threads == "1"


def test_a_worker_that_fails_is_reported_with_its_last_words(tmp_path, monkeypatch):
    lines = worker(tmp_path, monkeypatch, "print(1, flush=True)\nraise SystemExit('no such store')\n")
    assert next(lines) == 1
    with pytest.raises(WorkerFailed, match=r"exit code 1(.|\n)*no such store"):
        next(lines)


def test_a_line_that_is_not_json_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(WorkerFailed, match="not JSON: 'hello"):
        list(worker(tmp_path, monkeypatch, "print('hello')\n"))


def test_a_worker_does_not_outlive_its_reader(tmp_path, monkeypatch):
    code = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n"
    lines = worker(tmp_path, monkeypatch, code)
    pid = next(lines)
    lines.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
