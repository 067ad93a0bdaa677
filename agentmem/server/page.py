"""The inspector: a page at ``/`` that shows what is remembered, made of static files that ask the API for everything.

The files need no build step and no other host, and the page may use nothing else: see ``HEADERS``.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent / "inspector"
ASSETS = "/inspector"

_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    # No text becomes HTML except the templates of the page's own scripts, which lit-html makes.
    "require-trusted-types-for 'script'",
    "trusted-types lit-html",
)
HEADERS = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for each time, sent again only after an upgrade
}


@router.get("/")
async def inspector() -> Response:
    """The page."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


class Assets(StaticFiles):
    """Its scripts and styles."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file with the page's headers, or 404."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
