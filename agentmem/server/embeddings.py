"""``/v1/embeddings``: the vectors that recall works with."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from agentmem.server.access import Admitted
from agentmem.server.failures import Failure
from agentmem.server.serving import host_of

router = APIRouter(prefix="/v1", tags=["openai"])

Text = Annotated[str, Field(min_length=1, max_length=100_000)]


class EmbeddingRequest(BaseModel):
    """Texts to embed."""

    model: str
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class EmbeddingItem(BaseModel):
    """One text's vector: unit length; numbers, or little-endian float32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    model: str
    data: list[EmbeddingItem]
    usage: EmbeddingUsage


@router.post("/embeddings")
async def embed(request: Request, body: EmbeddingRequest, caller: Admitted) -> Embeddings:
    """Embed texts with the embedder of this server's memory."""
    host = host_of(request)
    host.check_model(body.model)
    scope = caller.scope(body.user)
    texts = [body.input] if isinstance(body.input, str) else body.input
    vectors, tokens = await host.with_model(request, scope, lambda: host.llm.embed(texts))
    if body.dimensions not in (None, vectors.shape[1]):
        message = f"vectors have {vectors.shape[1]} dimensions here"
        raise Failure(400, message, code="invalid_value", param="dimensions")
    packed = [
        base64.b64encode(vector.astype("<f4").tobytes()).decode()
        if body.encoding_format == "base64"
        else [float(x) for x in vector]
        for vector in vectors
    ]
    data = [EmbeddingItem(index=index, embedding=vector) for index, vector in enumerate(packed)]
    return Embeddings(model=body.model, data=data, usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens))
