"""Serves the OpenAPI and AsyncAPI documents and the page to read, made once when the application is put together."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from .endpoint import Call


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents as they are sent; `policy` is the page's Content-Security-Policy."""

    openapi: bytes
    asyncapi: bytes
    page: bytes
    policy: str


DOCUMENTS = web.AppKey("DOCUMENTS", Documents)
_CACHE = "public, max-age=300"


async def document(call: Call[None]) -> web.Response:
    return _json(call.request.app[DOCUMENTS].openapi)


async def socket_document(call: Call[None]) -> web.Response:
    return _json(call.request.app[DOCUMENTS].asyncapi)


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": "application/json", "Cache-Control": _CACHE})


async def page(call: Call[None]) -> web.Response:
    documents = call.request.app[DOCUMENTS]
    return web.Response(
        body=documents.page,
        headers={
            "Content-Type": "text/html; charset=utf-8",
            "Cache-Control": _CACHE,
            "Content-Security-Policy": documents.policy,
            "Referrer-Policy": "no-referrer",
        },
    )
