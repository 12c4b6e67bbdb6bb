"""The gateway as an ASGI app: the routes, bodies, states and error codes of flux-2-klein, as Segmind publishes them.

Beyond Segmind's API: `GET /health` (no key) names the engine and is 503 until it is ready, every answer has the header
`x-imagegen-engine`, `GET /metrics` is for Prometheus (no key unless one is set), and `GET /_gateway/stats` counts calls
and bills. A v1 call goes on, and is billed, when the client hangs up.
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

from prefect_imagegen.gateway.description import description_router
from prefect_imagegen.gateway.http.answers import AnswerError, JsonAnswer
from prefect_imagegen.gateway.http.fault_middleware import FaultMiddleware
from prefect_imagegen.gateway.http.intake import RequestFilter
from prefect_imagegen.gateway.jobs.runner import JobRunner
from prefect_imagegen.gateway.routes import account, generation, operation


def create_app(runner: JobRunner, on_failure: Callable[[Exception], None] | None = None) -> ASGIApp:
    """The gateway as an ASGI app over a job runner.

    With `on_failure` the app answers 503 while its engine starts, and calls it with the exception if that fails.
    Without, the app's own start waits for the engine, and raises its exception.
    """
    account_state = runner.account_state

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(start_engine())
        if on_failure is None:
            await starting
        yield
        starting.cancel()
        await runner.close()

    async def start_engine() -> None:
        try:
            await runner.start_engine()
        except Exception as error:  # whatever it is: nothing may wait for a gateway that never becomes ready
            if on_failure is None:
                raise
            on_failure(error)

    settings = account_state.settings
    app = FastAPI(title="prefect-imagegen gateway", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.state.runner, app.state.account_state = runner, account_state
    app.include_router(account.router)
    app.include_router(generation.router)
    app.include_router(operation.router)
    app.include_router(description_router(app, account_state))

    @app.exception_handler(AnswerError)
    async def answer(_: Request, error: AnswerError) -> Response:
        return error.response

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        if error.status_code == 405:  # the one answer of the API that is not JSON
            return HTMLResponse("<html><body><h1>405 Method Not Allowed</h1></body></html>", 405, error.headers)
        return JsonAnswer({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def bad_query(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JsonAnswer({"error": f"{first['loc'][-1]}: {first['msg']}"}, 400)

    public_host = urlsplit(settings.public_url or "").hostname
    request_filter = RequestFilter(app, settings.limits, has_key=account_state.has_key, public_host=public_host)
    return FaultMiddleware(request_filter, settings.engine)
