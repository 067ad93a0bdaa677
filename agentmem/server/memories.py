"""``/v1/memories``: what is remembered of one user, to look at, add to, correct, pin, prune and forget."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Body, Depends, Query, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from agentmem.errors import InvalidInput
from agentmem.memories import Memories
from agentmem.records import Activity, Event, Forgotten, Hit, Memory, PruneReport, Role, Scope, Stats, Tier
from agentmem.server.access import Admitted
from agentmem.server.failures import ErrorReply, Failure
from agentmem.server.serving import Host, host_of

router = APIRouter(prefix="/v1/memories", tags=["memories"])
T = TypeVar("T")

MAX_INT = 2**31 - 1
Count = Annotated[int, Field(ge=0, le=MAX_INT)]
Age = Annotated[str, Field(pattern="^[0-9]{1,6}[hdw]$")]
Tag = Annotated[str, Field(min_length=1, max_length=256)]
Session = Annotated[str, Field(max_length=256)]
SortKey = Literal[
    "created_at",
    "-created_at",
    "last_used",
    "-last_used",
    "uses",
    "-uses",
    "attention",
    "-attention",
    "frequency",
    "-frequency",
    "n_tokens",
    "-n_tokens",
    "kv_bytes",
    "-kv_bytes",
]
JSONL = "application/jsonl"
WHOSE = "Whose memories; a header or the key may say so instead."


class Strict(BaseModel):
    """Base of requests: a field that does not exist is refused."""

    model_config = ConfigDict(extra="forbid")


class Filter(Strict):
    """What a list or search is narrowed by; all that are given must hold."""

    role: Role | None = None
    tags: list[Tag] | None = Field(None, max_length=64)
    """Every one of these."""
    tier: Literal[Tier.WARM, Tier.COLD] | None = None
    """warm: its attention KV is on disk; cold: it is made anew at the next recall."""
    session: Session | None = None
    since: AwareDatetime | None = None
    """Written at or after."""
    until: AwareDatetime | None = None
    """Written before."""
    pinned: bool | None = None
    min_uses: Count | None = None
    """Read in at least so many turns."""

    @property
    def given(self) -> dict[str, Any]:
        """The filters as the store takes them."""
        return {name: value for name in Filter.model_fields if (value := getattr(self, name)) is not None}


class ListQuery(Filter):
    """How to list."""

    sort: SortKey = "-created_at"
    limit: int = Field(50, ge=1, le=500)
    cursor: str | None = Field(None, max_length=2000)
    """``next_cursor`` of the page before."""
    user: str | None = Field(None, description=WHOSE)
    """Read by ``_mine``; named here because what is not named is refused."""


class CountQuery(Filter):
    """What to count."""

    user: str | None = Field(None, description=WHOSE)


class Counted(BaseModel):
    """How many there are."""

    memories: int


class Page(BaseModel):
    """Some memories in order."""

    data: list[Memory]
    next_cursor: str | None
    """Where the next page begins; null at the end."""


class SearchRequest(Filter):
    """What to look for."""

    query: str = Field(min_length=1, max_length=100_000)
    top_k: int = Field(8, ge=1, le=200)
    threshold: float | None = Field(None, allow_inf_nan=False)
    """Least score of a result; null: the best, whatever their score."""
    explain: bool = False
    """Show what each score is made of."""


class Hits(BaseModel):
    """What was found, best first."""

    data: list[Hit]


class NewText(Strict):
    """A text to remember."""

    text: str = Field(min_length=1, max_length=1_000_000)
    role: Role = Role.USER
    session: Session | None = None
    tags: list[Tag] = Field(default_factory=list, max_length=64)
    meta: dict[str, Any] = Field(default_factory=dict)
    ttl: Age | None = None
    """Forget it after so long: 12h, 30d, 8w."""


class Expiry(Strict):
    """How long from now a memory is kept."""

    ttl: Age | None
    """12h, 30d, 8w; null: for good."""


class Added(BaseModel):
    """A text became these memories, one per chunk."""

    data: list[Memory]


class Change(Strict):
    """What to change of a memory; what is not given stays."""

    text: str | None = Field(None, min_length=1, max_length=65_536)
    tags: list[Tag] | None = Field(None, max_length=64)
    meta: dict[str, Any] | None = None


class Pin(Strict):
    """Whether a memory is safe from eviction."""

    pinned: bool = True


class Ids(Strict):
    """Memories to forget, all or none."""

    ids: list[str] = Field(min_length=1, max_length=1000)


class Prune(Strict):
    """Limits to bring the memories within, least used first."""

    max_bytes: int | None = Field(None, ge=0, le=2**62)
    """Most bytes of KV to keep; texts stay."""
    max_memories: Count | None = None
    unused_for: Age | None = None
    """Forget what was neither written nor read for so long: 12h, 30d, 8w."""
    dry_run: bool = True
    """Only say what would go. False does it."""
    listed: Count | None = None
    """Name at most so many of those that go; null: all."""


class Pruning(PruneReport):
    """What a prune did, or would do."""

    total: int
    """How many go, whether or not they are all in ``pruned``."""


class History(BaseModel):
    """What happened to a memory, oldest first."""

    data: list[Event]


class Imported(BaseModel):
    """How many memories were new."""

    imported: int


async def _mine(
    request: Request,
    caller: Admitted,
    user: Annotated[str | None, Query(description=WHOSE)] = None,
) -> Mine:
    scope = caller.scope(user)
    host = host_of(request)
    return Mine(request, host, scope, host.llm.memories(user=scope.user, agent=scope.agent))


class Mine:
    """The memories that a request is about."""

    def __init__(self, request: Request, host: Host, scope: Scope, memories: Memories) -> None:
        self._request, self._host, self._scope, self.memories = request, host, scope, memories

    async def store(self, work: Callable[[], T]) -> T:
        """Run what needs the store only: beside whatever the model does."""
        return await run_in_threadpool(work)

    async def model(self, work: Callable[[], T]) -> T:
        """Run what needs the model: in its turn."""
        return await self._host.with_model(self._request, self._scope, work)


TheirMemories = Annotated[Mine, Depends(_mine)]
_ABSENT: dict[int | str, dict[str, Any]] = {404: {"model": ErrorReply}}


@router.get("")
async def list_memories(mine: TheirMemories, query: Annotated[ListQuery, Query()]) -> Page:
    """Memories in order, a page at a time."""
    find = partial(mine.memories.page, sort=query.sort, limit=query.limit, cursor=query.cursor, **query.given)
    data, cursor = await mine.store(find)
    return Page(data=list(data), next_cursor=cursor)


@router.post("", status_code=201)
async def add_memory(mine: TheirMemories, body: NewText) -> Added:
    """Remember a text. When this returns, it is on disk."""
    given = body.model_dump(exclude={"text"})
    add = partial(mine.memories.add, body.text, **given)
    return Added(data=await mine.model(add))


@router.post("/search")
async def search_memories(mine: TheirMemories, body: SearchRequest) -> Hits:
    """Find memories by meaning and by words."""
    find = partial(
        mine.memories.search,
        body.query,
        top_k=body.top_k,
        threshold=body.threshold,
        explain=body.explain,
        **body.given,
    )
    return Hits(data=await mine.model(find))


@router.post("/delete", responses=_ABSENT)
async def delete_memories(mine: TheirMemories, body: Ids) -> Forgotten:
    """Forget several memories, all or (if one is not there) none."""
    return await mine.store(partial(mine.memories.delete, body.ids))


@router.post("/prune")
async def prune_memories(mine: TheirMemories, body: Prune) -> Pruning:
    """Bring the memories within limits; unless ``dry_run`` is false, only say what would go, and why."""
    prune = partial(
        mine.memories.prune,
        max_bytes=body.max_bytes,
        max_memories=body.max_memories,
        unused_for=body.unused_for,
        dry_run=body.dry_run,
    )
    report = await mine.store(prune)
    shown = report.model_copy(update={"pruned": report.pruned[: body.listed]})
    return Pruning(**dict(shown), total=len(report.pruned))


@router.get("/count")
async def count_memories(mine: TheirMemories, query: Annotated[CountQuery, Query()]) -> Counted:
    """How many memories pass the filters."""
    return Counted(memories=await mine.store(partial(mine.memories.count, **query.given)))


@router.get("/activity")
async def memory_activity(mine: TheirMemories) -> Activity:
    """What was added, deleted and evicted over time, and how uses are spread over the memories."""
    return await mine.store(mine.memories.activity)


@router.get("/stats")
async def memory_stats(mine: TheirMemories) -> Stats:
    """The memories in numbers. ``file_bytes`` is that of the whole store and is not told."""
    stats = await mine.store(mine.memories.stats)
    return stats.model_copy(update={"file_bytes": 0})


@router.get("/export", response_class=StreamingResponse, responses={200: {"content": {JSONL: {}}}})
async def export_memories(mine: TheirMemories) -> StreamingResponse:
    """All memories as JSON lines, without KV, as ``/v1/memories/import`` reads them."""
    lines = await mine.store(partial(_export, mine.memories))
    headers = {"Content-Disposition": 'attachment; filename="memories.jsonl"'}
    return StreamingResponse(lines, media_type=JSONL, headers=headers)


@router.post("/import", openapi_extra={"requestBody": {"content": {JSONL: {"schema": {"type": "string"}}}}})
async def import_memories(mine: TheirMemories, request: Request) -> Imported:
    """Take in an export: all of it or, if a line is bad, nothing. Memories that are here already stay as they are."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSONL, "application/x-ndjson"):
        raise Failure(415, f"an import is sent as {JSONL}", code="unsupported_media_type")
    return Imported(imported=await mine.model(partial(_import, mine.memories, await request.body())))


@router.get("/{id}", responses=_ABSENT)
async def get_memory(mine: TheirMemories, id: str) -> Memory:
    """One memory."""
    return await mine.store(partial(mine.memories.get, id))


@router.patch("/{id}", responses=_ABSENT)
async def update_memory(mine: TheirMemories, id: str, body: Change) -> Memory:
    """Change a memory. Of a text that is replaced, nothing remains."""
    update = partial(mine.memories.update, id, text=body.text, tags=body.tags, meta=body.meta)
    return await (mine.store(update) if body.text is None else mine.model(update))


@router.delete("/{id}", responses=_ABSENT)
async def delete_memory(mine: TheirMemories, id: str) -> Forgotten:
    """Forget a memory: nothing of it remains in any table, index, file or cache."""
    return await mine.store(partial(mine.memories.delete, id))


@router.put("/{id}/pin", responses=_ABSENT)
async def pin_memory(mine: TheirMemories, id: str, body: Annotated[Pin, Body()]) -> Memory:
    """Pin a memory, so that it is never evicted, or unpin it."""
    return await mine.store(partial(mine.memories.pin, id, body.pinned))


@router.put("/{id}/expiry", responses=_ABSENT)
async def expire_memory(mine: TheirMemories, id: str, body: Annotated[Expiry, Body()]) -> Memory:
    """Forget a memory so long from now, or keep it for good."""
    return await mine.store(partial(mine.memories.expire, id, body.ttl))


@router.get("/{id}/history", responses=_ABSENT)
async def memory_history(mine: TheirMemories, id: str) -> History:
    """What happened to a memory; also of one that was forgotten."""
    return History(data=list(await mine.store(partial(mine.memories.history, id))))


def _export(memories: Memories) -> Iterator[bytes]:
    """The export's bytes. Its file has no name any more when the first of them is read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memories.jsonl"
        memories.export(path)
        file = path.open("rb")

    def read() -> Iterator[bytes]:
        with file:
            while part := file.read(2**16):
                yield part

    return read()


def _import(memories: Memories, data: bytes) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memories.jsonl"
        path.write_bytes(data)
        try:
            return memories.load(path)
        except InvalidInput as error:
            raise InvalidInput(str(error).replace(str(path), "the import")) from None
