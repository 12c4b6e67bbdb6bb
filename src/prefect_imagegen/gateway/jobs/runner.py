"""Runs the jobs of a gateway: requests are queued, checked, made into images, billed and recorded."""

import asyncio
import json
import logging
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from PIL import Image

from prefect_imagegen.core.images.image import CONTENT_TYPES, encode
from prefect_imagegen.core.redact import traceback_of
from prefect_imagegen.core.request.models import (
    ASPECT_SIZES,
    MATCH_INPUT_IMAGE,
    MAX_SEED,
    MODELS,
    REFERENCES,
    SPELLINGS,
    FieldSpec,
    ModelSpec,
    reference_fields,
    size_of,
)
from prefect_imagegen.core.request.request import canonical_json
from prefect_imagegen.gateway.engines import ENGINES, ImageJob, UndrawableError
from prefect_imagegen.gateway.faults import HANG_S, Fault
from prefect_imagegen.gateway.http.intake import SEEDS
from prefect_imagegen.gateway.jobs.metrics import Metrics
from prefect_imagegen.gateway.jobs.references import BadReferenceError, Reference, References
from prefect_imagegen.gateway.limits import Gate, Seat
from prefect_imagegen.gateway.state.account import AccountState, Record, kept_body
from prefect_imagegen.gateway.state.uploads import BadDataUrlError
from prefect_imagegen.net.guard import FetchError

T = TypeVar("T")
_logger = logging.getLogger(__name__)
DEFAULT_SEED = 3425234
"""The default seed on the API's page: fixed, so two calls without a seed give the same image."""
State = Literal["warming", "ready", "draining"]
_TICK_S = 0.05
_FETCH_GRACE_S = 30.0
"""While draining, a finished result waits this long to be fetched."""
_BLACK_SIDE = 64
DRAWN_SIDES = range(64, 4097)
"""The width and height in pixels that a body may name: larger ones would take the memory of others."""


class BadRequestError(ValueError):
    """No image can be made for this body; the message is the API's error text."""


class JobRunner:
    """Records the requests of a gateway and runs them on its engine, in one event loop."""

    def __init__(self, account_state: AccountState) -> None:
        settings = account_state.settings
        self.account_state = account_state
        self._settings = settings
        self.metrics = Metrics()
        self.engine = ENGINES[settings.engine](settings, self.metrics)
        self.state: State = "warming"
        self._workers = asyncio.Semaphore(settings.workers)
        self._tasks: set[asyncio.Task[None]] = set()
        self._references = References(account_state)
        self.gate = Gate(settings.limits, settings.workers + settings.queue_limit)
        self._average_s = max(1.0, settings.latency_s)
        """Seconds that a request takes, a moving average."""
        self.metrics.queue.set_function(lambda: len(self._tasks) - account_state.in_flight)
        self.metrics.in_flight.set_function(lambda: account_state.in_flight)

    async def start_engine(self) -> None:
        """Start the engine. Raises RefusedError if it cannot work."""
        await self.engine.start()
        if self.state == "warming":
            self.state = "ready"

    @property
    def retry_after_s(self) -> float:
        """Seconds after which a full queue may have room again."""
        return self._average_s

    def open_record(
        self, account: str, model: str, body: dict[str, Any], fault: Fault | None, served_at: str
    ) -> Record:
        """Record an accepted request and reserve its price."""
        seed = body.get("seed", DEFAULT_SEED)
        resolved = secrets.randbelow(MAX_SEED + 1) if seed == -1 else seed
        record = Record(str(uuid.uuid4()), model, body, self._settings.clock(), fault=fault, served_at=served_at)
        record.seed = resolved if isinstance(resolved, int) and not isinstance(resolved, bool) else 0
        record.account = account
        self.account_state.enter(record)
        return record

    def start(self, record: Record, seat: Seat) -> "asyncio.Task[None]":
        """Start the job of a request. It goes on, and is billed, when the client hangs up."""
        task = asyncio.create_task(self._work(record))
        seat.is_handed_over = True
        task.add_done_callback(lambda _: self.gate.leave(seat))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self) -> None:
        """Accept nothing more; finish accepted work and let its results be fetched, for at most `drain_s` seconds."""
        self.state = "draining"
        remaining = self._settings.drain_s
        while remaining > 0 and (self._tasks or self.account_state.unfetched(_FETCH_GRACE_S)):
            await asyncio.sleep(_TICK_S)
            remaining -= _TICK_S

    async def close(self) -> None:
        """Cancel the work under way, and close the engine."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.close()
        await self._references.close()

    async def _work(self, record: Record) -> None:
        account_state, body_to_keep = self.account_state, record.body
        async with self._workers:
            account_state.in_flight += 1
            account_state.max_in_flight = max(account_state.max_in_flight, account_state.in_flight)
            record.status, record.started = "PROCESSING", self._settings.clock()
            try:
                if self._settings.latency_s:
                    await asyncio.sleep(self._settings.latency_s)
                if record.fault and (record.fault.fault, record.fault.when) == ("hang", "during"):
                    await asyncio.sleep(HANG_S if record.fault.seconds is None else record.fault.seconds)
                body_to_keep = await _off_loop(record.body, kept_body)
                await self._process(record)
                record.cost = account_state.price(record.model)
                account_state.accounts[record.account].charged += record.cost
                record.status = "COMPLETED"
                self.metrics.images.labels(record.model).inc()
            except (BadRequestError, BadReferenceError, BadDataUrlError, FetchError, UndrawableError) as error:
                record.status, record.error = "FAILED", str(error)
                self.metrics.errors.labels("bad_request").inc()
            except Exception as error:  # noqa: BLE001 - whatever it is, the job must end: pollers would wait for ever
                # Redacted: a bare traceback may contain URLs of the caller.
                _logger.error("request %s failed\n%s", record.request_id, traceback_of(error))  # noqa: TRY400
                record.status, record.broken = "FAILED", True
                record.error = f"Internal error: {type(error).__name__}"
                self.metrics.errors.labels("internal").inc()
            finally:
                account_state.in_flight -= 1
                account_state.accounts[record.account].reserved -= account_state.price(record.model)
                record.finished, record.body = self._settings.clock(), body_to_keep
                account_state.close(record)
                seconds = record.finished - record.submitted
                self.metrics.seconds.observe(max(0.0, seconds))
                self._average_s += 0.2 * (min(60.0, max(1.0, seconds)) - self._average_s)

    async def _process(self, record: Record) -> None:
        fault = record.fault.fault if record.fault else None
        if fault == "failed" and record.fault:
            raise BadRequestError(record.fault.text)
        params, spec = checked_params(record.model, record.body), MODELS[record.model]
        if not params[REFERENCES]:
            await self._make_image(record, spec, params, [])
            return
        async with self._references.turns:
            urls = spec.references.values_in(record.body)
            references = await self._references.of_call(urls, record.served_at, record.account)
            await self._make_image(record, spec, params, references)

    async def _make_image(
        self, record: Record, spec: ModelSpec, params: Mapping[str, Any], references: Sequence[Reference]
    ) -> None:
        fault = record.fault.fault if record.fault else None
        identity = await _off_loop({"model": record.model, **params, "seed": record.seed}, canonical_json)
        job = ImageJob(
            record.model,
            params["prompt"],
            record.seed,
            *size_of(spec.size, params, references[0].size if references else None, self._settings.megapixels),
            image_format=_format_of(spec, params),
            quality=min(100, max(1, spec.quality_of(params))),
            request_id=record.request_id,
            identity=identity,
            references=[reference.data for reference in references],
            reference_ids=[reference.sha256 for reference in references],
            params=params,
        )
        image = await self.engine.draw(job)
        record.applied = image.applied
        data = _black(job.image_format) if fault == "black_image" else image.data
        record.output, record.content_type = f"{record.request_id}.{job.image_format}", image.content_type
        await asyncio.to_thread((self.account_state.folder / record.output).write_bytes, data)
        self.account_state.outputs.put(record.output, len(data), self._settings.clock())


def checked_params(model: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a body, with the model's defaults filled in, and its references as `image_urls`.

    Raises BadRequestError.
    """
    spec = MODELS[model]
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise BadRequestError("Prompt is Mandatory and must be string")
    params: dict[str, Any] = {"prompt": prompt}
    for name, field in spec.fields.items():
        value = body.get(name)
        params[name] = field.default if value is None else _value(field, value)
    seed = body.get("seed", DEFAULT_SEED)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed not in SEEDS:
        raise BadRequestError(f"seed must be an integer, -1 to {SEEDS[-1]}")
    urls = _urls(spec, body)
    _check_drawable(spec, params, urls)
    return params | {REFERENCES: urls}


def _urls(spec: ModelSpec, body: Mapping[str, Any]) -> list[str]:
    """The references of a body, in order. Raises BadRequestError."""
    if spec.references.is_list:
        (name,) = spec.references.fields
        urls = [] if body.get(name) is None else body[name]
        if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
            raise BadRequestError(f"{name} must be a list of URLs")
    else:
        pairs = spec.references.values_in(body)
        urls = [url for _, url in pairs]
        if strange := [name for name, url in pairs if not isinstance(url, str)]:
            raise BadRequestError(f"{strange[0]} must be a URL")
    if reason := spec.references.check(len(urls)):
        raise BadRequestError(f"{spec.slug} {reason}")
    return urls


def _check_drawable(spec: ModelSpec, params: Mapping[str, Any], urls: Sequence[str]) -> None:
    """Raise BadRequestError for a size or a format that is not drawn here."""
    size = spec.size
    ratio = params[size.ratio] if size.ratio else None
    if ratio == MATCH_INPUT_IMAGE and not urls:
        raise BadRequestError(f"{MATCH_INPUT_IMAGE} needs at least one image in {spec.references.fields[0]}")
    if size.ratio and ratio != MATCH_INPUT_IMAGE and ratio not in ASPECT_SIZES:
        raise BadRequestError(f"{size.ratio}: no size is known for it, use one of {', '.join(ASPECT_SIZES)}")
    sides = size.sides(params)
    if size.pixels and sides is None:
        raise BadRequestError(f"{size.pixels}: it must be width and height in pixels, such as 1024x768")
    for name, side in zip((size.pixels or size.width, size.pixels or size.height), sides or (), strict=False):
        if side not in DRAWN_SIDES:
            raise BadRequestError(f"{name}: sides of {DRAWN_SIDES[0]} to {DRAWN_SIDES[-1]} pixels are drawn here")
    if _format_of(spec, params) not in CONTENT_TYPES:
        raise BadRequestError(f"{spec.format_field}: {', '.join(CONTENT_TYPES)} are drawn here")


def _format_of(spec: ModelSpec, params: Mapping[str, Any]) -> str:
    """The format to draw, by the name that decoding gives it."""
    name = spec.format_of(params)
    return SPELLINGS.get(name, name)


def _value(spec: FieldSpec, value: Any) -> Any:
    if reason := spec.check(value):
        raise BadRequestError(f"{spec.name}: {reason}")
    if spec.choices and value not in spec.choices:
        raise BadRequestError(f"{spec.name}: it must be one of {', '.join(spec.choices)}")
    return int(value) if spec.type == "integer" else value


async def _off_loop(body: dict[str, Any], work: Callable[[dict[str, Any]], T]) -> T:
    """Run CPU-bound work on a body; in a thread if the body may contain images."""
    return await asyncio.to_thread(work, body) if any(map(body.get, reference_fields())) else work(body)


def _black(image_format: str) -> bytes:
    return encode(Image.new("RGB", (_BLACK_SIDE, _BLACK_SIDE)), image_format, quality=90)


def body_text(record: Record) -> str:
    """The body of a request as the history shows it: the repr of a Python dict."""
    return repr(json.loads(json.dumps(record.body)))


def media_type(record: Record) -> str:
    """The media type of a delivered image."""
    return record.content_type or CONTENT_TYPES["png"]
