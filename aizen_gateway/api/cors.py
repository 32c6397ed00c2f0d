"""CORS: which pages of which origins may read answers (contract section 7, `AIZEN_CORS_ORIGINS`).

Callers show themselves with headers and never with cookies, so credentials are never allowed.
"""

from __future__ import annotations

from collections.abc import Iterable

import aiohttp_cors
from aiohttp import web

EXPOSED = ("X-Request-ID", "Retry-After", "Idempotent-Replay")
ALLOWED_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "X-Customer-ID",
    "X-Device-Session",
    "X-Device-Token",
    "X-Request-ID",
)
METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")
_MAX_AGE_S = 600


def setup_cors(
    app: web.Application, origins: Iterable[str], private: Iterable[web.Resource], public: Iterable[web.Resource]
) -> None:
    """Let `origins` use `private` resources, and everybody read the `public` ones."""
    allowed = frozenset(origins)
    options = _options(METHODS)
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(sorted(allowed), options))
    if allowed:
        for resource in private:
            cors.add(resource)
    anybody = {"*": _options(("GET", "HEAD"))}
    for resource in public:
        cors.add(resource, anybody)

    async def complete(request: web.Request, response: web.StreamResponse) -> None:
        """Answers differ by origin; and a page may read why its route or method was wrong, which no resource covers."""
        response.headers.add("Vary", "Origin")
        origin = request.headers.get("Origin")
        if origin in allowed and request.match_info.route.resource is None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = ",".join(EXPOSED)

    app.on_response_prepare.append(complete)


def _options(methods: tuple[str, ...]) -> aiohttp_cors.ResourceOptions:
    return aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call]  # its types are partial
        allow_credentials=False,
        expose_headers=EXPOSED,
        allow_headers=ALLOWED_HEADERS,
        allow_methods=methods,
        max_age=_MAX_AGE_S,
    )
