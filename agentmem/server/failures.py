"""What went wrong, as HTTP says it: a status and OpenAI's error object, for every path alike."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from agentmem.errors import (
    AgentMemError,
    Closed,
    InvalidInput,
    NotFound,
    StoreBusy,
    StoreFull,
    StoreUnavailable,
    StreamChanged,
)

log = logging.getLogger(__name__)

STATUS: tuple[tuple[type[AgentMemError], int, str], ...] = (
    (InvalidInput, 400, "invalid_value"),
    (NotFound, 404, "not_found"),
    (StreamChanged, 409, "conflict"),
    (StoreBusy, 503, "store_busy"),
    (StoreUnavailable, 503, "store_unavailable"),
    (StoreFull, 507, "store_full"),
    (Closed, 503, "shutting_down"),
)
"""Errors whose messages speak of the caller's own input or of the moment; all others are answered as 500."""


class ErrorBody(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    """Which field of the request."""
    code: str | None = None


class ErrorReply(BaseModel):
    """The form of every error."""

    error: ErrorBody


class Failure(Exception):
    """An answer with a status of 400 or more."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after = retry_after

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure that an error amounts to. What is nobody's input is told without its message."""
        if isinstance(error, cls):
            return error
        for kind, status, code in STATUS:
            if isinstance(error, kind):
                # 4xx: about the caller's own input. The others may name files of this machine.
                message = str(error) if status < 500 else f"the request cannot be served now ({code}); try again"
                return cls(status, message, code=code, retry_after=None if status < 500 else 1)
        return cls(500, "the server failed; its log says more", code="internal_error")

    @property
    def body(self) -> dict[str, Any]:
        """``{"error": {...}}``."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return ErrorReply(
            error=ErrorBody(message=self.message, type=kind, param=self.param, code=self.code)
        ).model_dump()

    @property
    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (408, 413):  # the rest of the body is not waited for
            headers["Connection"] = "close"
        return JSONResponse(self.body, self.status, headers)


def note(error: BaseException) -> None:
    """Log where an unexpected error came from: kinds and lines, no message, which could quote what was said."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s\n%s", type(error).__qualname__, frames)


def explain(errors: Sequence[Any]) -> Failure:
    """The first thing that is wrong with a request's form. Its value is not repeated: it may be long or private."""
    first = jsonable_encoder(errors[0], exclude={"input", "ctx", "url"})
    where = [str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path", "header")]
    if first.get("type") == "json_invalid":
        return Failure(400, "the body is not valid JSON", code="invalid_json")
    param = ".".join(where) or None
    message = str(first.get("msg", "invalid"))
    return Failure(400, f"{param}: {message}" if param else message, code="invalid_request", param=param)


def install(app: FastAPI) -> None:
    """Every error of the application in this form."""

    @app.exception_handler(Failure)
    async def failed(request: Request, error: Failure) -> JSONResponse:
        return error.response

    @app.exception_handler(AgentMemError)
    async def refused(request: Request, error: AgentMemError) -> JSONResponse:
        failure = Failure.of(error)
        if failure.status >= 500:
            note(error)
        return failure.response

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return explain(error.errors()).response

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
        response = Failure(error.status_code, str(error.detail), code=codes.get(error.status_code, "refused")).response
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        note(error)
        return Failure.of(error).response
