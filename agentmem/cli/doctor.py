"""``agentmem doctor``: is everything here that is needed, and what to do if not."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from pysqlite3 import dbapi2 as driver
from rich.text import Text

from agentmem.cli import options as opt
from agentmem.cli.opening import open_store
from agentmem.cli.output import err, grid, out, plain, print_json, size
from agentmem.errors import AgentMemError, StoreError
from agentmem.records import Record
from agentmem.store.engine import Database, check_driver
from agentmem.store.postgres.engine import is_postgres, shown

_LEAST_FREE = 200 * 2**20
"""Bytes of free disk below which a store soon cannot be written."""


class Finding(Record):
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    advice: str = ""
    """What to do; empty where nothing is wrong."""


def doctor(
    store: Annotated[
        str | None, typer.Option("--store", envvar="AGENTMEM_STORE", help="Check this store as well.")
    ] = None,
    json: opt.Json = False,
) -> None:
    """Check versions, the database driver, the bundled model, the disk and a store. Exit code 1 when one is broken."""
    findings = []
    with err.status("looking"):
        for check in (_versions, _sqlite, _bundled, lambda: _disk(store), lambda: _store(store)):
            findings += list(check())
    ok = all(finding.ok for finding in findings)
    if json:
        print_json({"ok": ok, "findings": findings})
    else:
        table = grid(("", {"no_wrap": True}), ("What", {"no_wrap": True}), ("Found", {"overflow": "fold"}))
        for finding in findings:
            sign = Text("ok", style="green") if finding.ok else Text("broken", style="bold red")
            found = finding.detail + (f"\n{finding.advice}" if finding.advice else "")
            table.add_row(sign, finding.name, Text(plain(found)))
        out.print(table)
    if not ok:
        raise typer.Exit(1)


def _versions() -> Iterator[Finding]:
    yield Finding(name="agentmem", ok=True, detail=version("agentmem-kv"))
    yield Finding(name="python", ok=True, detail=f"{platform.python_version()} ({sys.executable})")
    for name in ("torch", "transformers", "sqlalchemy"):
        yield Finding(name=name, ok=True, detail=version(name))
    import torch  # late, as in _bundled: nothing else of the command line's needs it

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    yield Finding(name="device", ok=True, detail=f"cuda ({gpu})" if gpu else f"cpu ({torch.get_num_threads()} threads)")


def _sqlite() -> Iterator[Finding]:
    name, detail = "sqlite", f"{driver.sqlite_version} (pysqlite3 {version('pysqlite3')})"
    try:
        check_driver()
    except StoreError as error:
        yield Finding(name=name, ok=False, detail=detail, advice=str(error))
        return
    yield Finding(name=name, ok=True, detail=detail)
    database = Database(None, lock_timeout=1.0)
    try:
        with database.read() as connection:
            found = str(connection.exec_driver_sql("SELECT vec_version()").scalar_one())
        yield Finding(name="sqlite-vec", ok=True, detail=found)
    except StoreError as error:
        advice = "install sqlite-vec again, for this Python and this machine"
        yield Finding(name="sqlite-vec", ok=False, detail=str(error), advice=advice)
    finally:
        database.close()


def _bundled() -> Iterator[Finding]:
    from agentmem.llm import bundled_model
    from agentmem.model.local import LocalModel

    try:
        model = LocalModel.load(bundled_model())
    except AgentMemError as error:
        advice = "install agentmem-kv again, or name another model with --model"
        yield Finding(name="bundled model", ok=False, detail=str(error), advice=advice)
        return
    n = sum(parameter.numel() for parameter in model.model.parameters())
    yield Finding(name="bundled model", ok=True, detail=f"{n / 1e6:.1f} M parameters, {model.n_layers} layers")


def _disk(store: str | None) -> Iterator[Finding]:
    folder = Path.cwd() if store is None or is_postgres(store) else Path(store).absolute().parent
    if not folder.is_dir():
        yield Finding(
            name="disk", ok=False, detail=f"{folder} is not a folder", advice="create it, or give another --store"
        )
        return
    free = shutil.disk_usage(folder).free
    ok = free >= _LEAST_FREE
    advice = "" if ok else f"free some space: a store needs room for its log, keep at least {size(_LEAST_FREE)}"
    yield Finding(name="disk", ok=ok, detail=f"{size(free)} free in {folder}", advice=advice)


def _store(store: str | None) -> Iterator[Finding]:
    if store is None:
        return
    try:
        with open_store(store) as whole:
            stats, report = whole.stats(), whole.verify()
    except StoreError as error:
        yield Finding(
            name="store", ok=False, detail=str(error), advice="give another --store, or restore a backup of it"
        )
        return
    name = shown(store)
    detail = f"{name}: {stats.memories} memories, {size(stats.file_bytes)}, {len(report.problems)} problems"
    advice = "" if report.ok else f"see and repair them: agentmem memories verify --repair --store {name}"
    yield Finding(name="store", ok=report.ok, detail=detail, advice=advice)
