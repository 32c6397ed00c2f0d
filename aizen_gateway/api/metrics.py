"""`/metrics`, for the address that is not public (contract section 5)."""

from __future__ import annotations

from aiohttp import web

from ..metrics import CONTENT_TYPE, Metrics

METRICS = web.AppKey("METRICS", Metrics)


def metrics_application(metrics: Metrics) -> web.Application:
    """An application that serves `/metrics` and nothing else."""

    async def show(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", show)
    return app
