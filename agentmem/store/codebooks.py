"""Where codebooks live: one row per fingerprint. A cache, like the KV that they compress."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import sqlalchemy as sa

from agentmem.errors import PayloadDamaged
from agentmem.store.inputs import MAX_FINGERPRINT, now_us
from agentmem.store.quantiser import Codebooks
from agentmem.store.schema import CodebookRow
from agentmem.text import check_text

if TYPE_CHECKING:
    from agentmem.store.store import Store


def load_codebooks(store: Store, fingerprint: str) -> Codebooks | None:
    """The codebooks for KV of this fingerprint, or None when there are none, or damaged ones."""
    with store.database.read() as connection:
        row = connection.execute(sa.select(CodebookRow).where(CodebookRow.fingerprint == fingerprint)).one_or_none()
    if row is None or hashlib.sha256(row.data).digest() != row.sha256:
        return None
    try:
        return Codebooks.from_bytes(row.data)
    except PayloadDamaged:
        return None


def save_codebooks(store: Store, fingerprint: str, codebooks: Codebooks) -> None:
    """Keep codebooks; those of before are replaced, and what was packed with them will be encoded anew."""
    check_text(fingerprint, "fingerprint", MAX_FINGERPRINT)
    data = codebooks.to_bytes()
    with store.write() as connection:
        connection.execute(sa.delete(CodebookRow).where(CodebookRow.fingerprint == fingerprint))
        connection.execute(
            sa.insert(CodebookRow).values(
                fingerprint=fingerprint, sha256=hashlib.sha256(data).digest(), created_us=now_us(), data=data
            )
        )
