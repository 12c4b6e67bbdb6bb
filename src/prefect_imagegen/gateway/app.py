"""The Segmind API, self-hosted: the routes, bodies, states and error codes of flux-2-klein, as published.

Beyond the API: `GET /health` (no key) names the engine, every answer has the header `x-imagegen-engine`, and
`GET /_gateway/stats` tells what was called and billed. v1 work goes on, and is billed, when the client hangs up.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from prefect_imagegen.core.models import MODELS
from prefect_imagegen.gateway import account, generation
from prefect_imagegen.gateway.calls import WITH_KEY, AnswerError, BooksOf
from prefect_imagegen.gateway.records import Books
from prefect_imagegen.gateway.studio import Studio
from prefect_imagegen.gateway.wire import Wire


def create_app(books: Books) -> ASGIApp:
    """The gateway as an ASGI app over these books."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.studio = Studio(books)
        yield
        await app.state.studio.close()

    app = FastAPI(title="prefect-imagegen gateway", lifespan=lifespan, redoc_url=None)
    app.state.books = books
    app.include_router(account.router)
    app.include_router(generation.router)

    @app.exception_handler(AnswerError)
    async def answer(_: Request, error: AnswerError) -> Response:
        return error.response

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        if error.status_code == 405:  # the one answer of the API that is no JSON
            return HTMLResponse("<html><body><h1>405 Method Not Allowed</h1></body></html>", 405)
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.exception_handler(RequestValidationError)
    async def bad_query(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 400)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "engine": books.settings.engine, "models": sorted(MODELS)}

    @app.get("/_gateway/stats", dependencies=[WITH_KEY])
    async def stats(own: BooksOf) -> dict[str, Any]:
        return own.statistics()

    return Wire(app, books.settings.engine)
