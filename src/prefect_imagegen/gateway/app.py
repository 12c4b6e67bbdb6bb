"""The Segmind API, self-hosted: the routes, bodies, states and error codes of flux-2-klein, as published.

Beyond the API: `GET /health` (no key) names the engine and is 503 until it can draw, every answer has the header
`x-imagegen-engine`, `GET /metrics` (no key) is for Prometheus, and `GET /_gateway/stats` tells what was called and
billed. v1 work goes on, and is billed, when the client hangs up.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from prefect_imagegen.gateway.description import description_of
from prefect_imagegen.gateway.http.answers import AnswerError, JsonAnswer
from prefect_imagegen.gateway.http.fault_middleware import FaultMiddleware
from prefect_imagegen.gateway.http.intake import Doorway
from prefect_imagegen.gateway.jobs.runner import JobRunner
from prefect_imagegen.gateway.routes import account, generation, operation


def create_app(studio: JobRunner, on_failure: Callable[[Exception], None] | None = None) -> ASGIApp:
    """The gateway as an ASGI app over a studio.

    With `on_failure` it answers while its engine gets ready (503), and tells there if that fails; without, its start
    waits for the engine, and fails with it.
    """
    books = studio.books

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(get_ready())
        if on_failure is None:
            await starting
        yield
        starting.cancel()
        await studio.close()

    async def get_ready() -> None:
        try:
            await studio.get_ready()
        except Exception as error:  # whatever it is: nobody may wait for a gateway that never gets ready
            if on_failure is None:
                raise
            on_failure(error)

    settings = books.settings
    app = FastAPI(title="prefect-imagegen gateway", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.state.studio, app.state.books = studio, books
    app.include_router(account.router)
    app.include_router(generation.router)
    app.include_router(operation.router)
    app.include_router(description_of(app, books))

    @app.exception_handler(AnswerError)
    async def answer(_: Request, error: AnswerError) -> Response:
        return error.response

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        if error.status_code == 405:  # the one answer of the API that is no JSON
            return HTMLResponse("<html><body><h1>405 Method Not Allowed</h1></body></html>", 405, error.headers)
        return JsonAnswer({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def bad_query(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JsonAnswer({"error": f"{first['loc'][-1]}: {first['msg']}"}, 400)

    public_host = urlsplit(settings.public_url or "").hostname
    doorway = Doorway(app, settings.limits, has_key=books.has_key, public_host=public_host)
    return FaultMiddleware(doorway, settings.engine)
