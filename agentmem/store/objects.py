"""KV payloads of a PostgreSQL store in an S3-compatible bucket, one immutable object each.

The rules are those of ``payloads.py``: an object is written BEFORE the row that names it commits, its name is never
used again, and it is removed by way of the ``kv_trash`` table after the row is gone. Objects lie below the store's own
name, so that two stores may share a bucket and a prefix.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

import sqlalchemy as sa

from agentmem.errors import InvalidInput, StoreError, StoreOpenError, StoreUnavailable
from agentmem.store.postgres.engine import PostgresDatabase
from agentmem.store.schema import SchemaMeta

AT_ONCE = 8
"""Objects that are written, or read, side by side."""

_PATIENCE = timedelta(seconds=20)
"""For which a request that the server refuses for now is sent again."""


class PayloadObjects:
    """The objects of one store; ``uri`` is a key below ``s3://bucket/prefix/<store>``.

    Where the bucket is, and who we are, obstore reads from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_REGION, AWS_ENDPOINT_URL, AWS_ALLOW_HTTP.
    """

    def __init__(self, url: str, store_id: str):
        try:
            import obstore
            from obstore.store import S3Store
        except ModuleNotFoundError as error:
            raise StoreOpenError(
                f'kv_store={url!r} needs the package {error.name}: pip install "agentmem-kv[s3]"'
            ) from error
        self.url = f"{url.rstrip('/')}/{store_id}"
        self._obstore = obstore
        self._failure = obstore.exceptions.BaseError
        self._absent = (FileNotFoundError, obstore.exceptions.NotFoundError)
        try:
            self._bucket: Any = S3Store.from_url(self.url, retry_config={"max_retries": 5, "retry_timeout": _PATIENCE})
            self.of_memory(0, 0)  # any answer will do
        except (StoreUnavailable, self._failure, ValueError) as error:
            raise StoreOpenError(f"cannot use {url} for KV ({_first_line(error)}); check bucket and access") from error

    def place(self, turn_id: int, memory_id: int, model_key: str) -> str:
        """A fresh key."""
        return f"{turn_id % 256:02x}/{turn_id}/{memory_id}.{model_key}.{secrets.token_hex(6)}.kv"

    def write(self, payloads: Iterable[tuple[str, bytes | bytearray | memoryview]]) -> None:
        """Write (key, bytes) durably; after an error none of them is left (or the sweep will find it).

        Raises:
            StoreUnavailable: the bucket cannot be written.
        """
        several = list(payloads)
        try:
            with ThreadPoolExecutor(min(AT_ONCE, len(several))) as threads:
                list(threads.map(lambda one: self._obstore.put(self._bucket, one[0], one[1]), several))
        except (self._failure, OSError) as error:
            with suppress(StoreError):  # the sweep of orphans finds them
                self.unlink(*(uri for uri, _ in several))
            self._refused("write KV to", error)

    def read(self, uri: str) -> bytearray | None:
        """The bytes of an object in a buffer of the caller's own, or None when there is no such object.

        Raises:
            StoreUnavailable: the bucket cannot be read.
        """
        try:
            return bytearray(memoryview(self._obstore.get(self._bucket, uri).bytes()))
        except self._absent:
            return None
        except (self._failure, OSError) as error:
            self._refused("read KV from", error)

    def read_many(self, uris: Sequence[str]) -> Iterator[bytearray | None]:
        """``read`` of each object, in order; several are on their way at once."""
        if uris:
            with ThreadPoolExecutor(min(AT_ONCE, len(uris))) as threads:
                yield from threads.map(self.read, uris)

    def sha256(self, uri: str) -> bytes | None:
        """Digest of an object's bytes; None when there is no such object."""
        data = self.read(uri)
        return None if data is None else hashlib.sha256(data).digest()

    def unlink(self, *uris: str) -> None:
        """Remove objects. They may be gone already.

        Raises:
            StoreUnavailable: one cannot be removed; it is safe to try again.
        """
        if not uris:
            return
        try:
            self._obstore.delete(self._bucket, list(uris))
        except self._absent:
            for uri in uris if len(uris) > 1 else ():
                self.unlink(uri)
        except (self._failure, OSError) as error:
            self._refused("remove KV from", error)

    def of_memory(self, turn_id: int, memory_id: int) -> list[str]:
        """Keys of every object of a memory, those that a crash left without a row included."""
        folder = f"{turn_id % 256:02x}/{turn_id}"
        return [uri for uri, _, _ in self._list(folder) if uri.startswith(f"{folder}/{memory_id}.")]

    def walk(self, older_than: float = 0.0) -> Iterator[str]:
        """Keys of all objects but those written within ``older_than`` seconds of now, by the server's clock or ours."""
        now = time.time()
        yield from (uri for uri, written, _ in self._list(None) if abs(now - written) >= older_than)

    def size(self) -> int:
        """Bytes of all objects; a request per thousand of them."""
        return sum(nbytes for _, _, nbytes in self._list(None))

    def _list(self, folder: str | None) -> Iterator[tuple[str, float, int]]:
        try:
            for several in self._obstore.list(self._bucket, folder):
                for one in several:
                    yield one["path"], one["last_modified"].timestamp(), one["size"]
        except (self._failure, OSError) as error:
            self._refused("list", error)

    def _refused(self, what: str, error: Exception) -> NoReturn:
        raise StoreUnavailable(f"cannot {what} {self.url} ({_first_line(error)}); check bucket and access") from error


def open_bucket(database: PostgresDatabase, kv_store: str | None) -> PayloadObjects | None:
    """The bucket of a store: the one given, which is remembered, or the one remembered.

    Raises:
        InvalidInput: not an s3:// address.
        StoreOpenError: it cannot be used, or the store's KV is in another one.
    """
    if kv_store is not None and not (kv_store.startswith("s3://") and len(kv_store) > len("s3://")):
        raise InvalidInput(f"kv_store must look like s3://bucket/prefix, not {kv_store!r}")
    with database.read() as connection:
        facts = dict(connection.execute(sa.select(SchemaMeta.key, SchemaMeta.value)).all())
    known, store_id = facts.get("kv_store"), facts.get("store_id", secrets.token_hex(8))
    if kv_store is not None and known not in (None, kv_store):
        raise StoreOpenError(f"the KV of {database.name} is in {known}, not in {kv_store}; leave kv_store out")
    url = kv_store or known
    if url is None:
        return None
    bucket = PayloadObjects(url, store_id)
    if known is None:
        with database.write() as connection:
            rows = [{"key": "kv_store", "value": url}, {"key": "store_id", "value": store_id}]
            connection.execute(sa.insert(SchemaMeta), rows)
    return bucket


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
