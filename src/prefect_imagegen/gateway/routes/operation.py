"""What whoever runs a gateway asks of it: whether it can draw, what it measured, and what was called and billed."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from prefect_imagegen.gateway.http.answers import JsonAnswer
from prefect_imagegen.gateway.jobs.runner import JobRunner
from prefect_imagegen.gateway.routes.calls import WITH_KEY, WITH_KEY_IF_SET, BooksOf

router = APIRouter()


@router.get("/health")
async def health(request: Request, books: BooksOf) -> Response:
    """200 if it draws; 503 while its engine gets ready, and when it is about to end."""
    studio: JobRunner = request.app.state.studio
    ready = studio.state == "ready"
    content = {"status": "ok" if ready else studio.state, "engine": books.settings.engine, "models": books.models}
    return JsonAnswer(content | dict(studio.engine.facts), 200 if ready else 503)


@router.get("/metrics", dependencies=[WITH_KEY_IF_SET])
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    studio: JobRunner = request.app.state.studio
    return Response(studio.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/_gateway/stats", dependencies=[WITH_KEY])
async def stats(books: BooksOf) -> dict[str, Any]:
    """What was called and billed."""
    return books.statistics()
