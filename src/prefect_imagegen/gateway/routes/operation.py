"""The routes for operators of a gateway: health, metrics, and counts of calls and bills."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from prefect_imagegen.gateway.http.answers import JsonAnswer
from prefect_imagegen.gateway.jobs.runner import JobRunner
from prefect_imagegen.gateway.routes.calls import WITH_KEY, WITH_KEY_IF_SET, AccountStateOf

router = APIRouter()


@router.get("/health")
async def health(request: Request, account_state: AccountStateOf) -> Response:
    """200 if it draws; 503 while its engine gets ready, and when it is about to end."""
    runner: JobRunner = request.app.state.runner
    ready = runner.state == "ready"
    content = {
        "status": "ok" if ready else runner.state,
        "engine": account_state.settings.engine,
        "models": account_state.models,
    }
    return JsonAnswer(content | dict(runner.engine.facts), 200 if ready else 503)


@router.get("/metrics", dependencies=[WITH_KEY_IF_SET])
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    runner: JobRunner = request.app.state.runner
    return Response(runner.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/_gateway/stats", dependencies=[WITH_KEY])
async def stats(account_state: AccountStateOf) -> dict[str, Any]:
    """What was called and billed."""
    return account_state.statistics()
