"""The OpenAI Images dialect, as vLLM-Omni and SGLang serve FLUX.2 [klein].

Sources: the request models of vLLM-Omni 0.30.0 and SGLang 0.5.23. Their defaults differ and surprise (an image as a
URL, the same seed for every call, 50 steps, the size of the first reference), so size, seed, steps, guidance, format
and the form of the answer are always sent. Neither has a queue limit: the pool bounds what is in flight. `model` is
left out, since a wrong one is refused; references go as bytes, since a server that fetches them would see the network
of the workers.
"""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from prefect_imagegen.core.answers.json_values import error_text, parse_json
from prefect_imagegen.core.base64_text import decode_base64, lacks_padding
from prefect_imagegen.core.errors import ProviderError
from prefect_imagegen.core.images.image import BadImageError, decode, upright_size
from prefect_imagegen.core.policy.backoff import pause_seconds
from prefect_imagegen.core.redact import redact
from prefect_imagegen.core.request.models import MODELS, pixels_of
from prefect_imagegen.core.request.profiles import models_of
from prefect_imagegen.core.request.request import GenerationRequest, plain_number
from prefect_imagegen.net.client import make_client
from prefect_imagegen.ports import Balance, Delivery, Health, Submission
from prefect_imagegen.providers.segmind.http import UNREADABLE, plain_name, read_body

_PNG_COMPRESSION = 60
"""vLLM-Omni: 9 - 60 // 11 = zlib level 4; its default of 100 means no compression at all."""
_STATUS_KINDS = {
    401: "auth",
    403: "auth",
    404: "protocol",
    405: "protocol",
    410: "protocol",
    429: "rate_limited",
    500: "server_error",
}


@dataclass(frozen=True, slots=True)
class ImagesEngine:
    """How one engine differs: the word of its /health when it can work, and what it does with a negative prompt."""

    name: str
    healthy: str
    uses_negative_prompt: bool


ENGINES: Mapping[str, ImagesEngine] = MappingProxyType(
    {
        engine.healthy: engine
        for engine in (
            ImagesEngine("vllm-omni", "healthy", uses_negative_prompt=False),
            ImagesEngine("sglang", "ok", uses_negative_prompt=True),
        )
    }
)
"""By the status that /health tells."""


class OpenAIImages:
    """A `ports.Dialect` over one server. Close it with `aclose`."""

    queues = False

    def __init__(
        self, base_url: str, api_key: SecretStr | None, *, deadline: float, connect_timeout: float = 2.0
    ) -> None:
        parts = urlsplit(base_url)
        self.endpoint = f"{parts.scheme}://{parts.hostname or ''}" + (f":{parts.port}" if parts.port else "")
        self._base = base_url.rstrip("/")
        self._key = api_key.get_secret_value() if api_key else ""
        self._headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        self._engine: ImagesEngine | None = None
        self._models: frozenset[str] | None = None
        self._client = make_client(max_connections=64, connect_timeout=connect_timeout, read_timeout=deadline)

    async def health(self) -> Health:
        """`GET /health`: 200 means ready; SGLang holds calls back while it warms up, so it is asked before any."""
        try:
            async with self._client.stream("GET", f"{self._base}/health", timeout=10.0) as response:
                value = parse_json(await read_body(response))
        except UNREADABLE as error:
            return Health(False, f"no answer: {plain_name(error)}")
        told = str(value.get("status") or "") if isinstance(value, dict) else ""
        self._engine = ENGINES.get(told, self._engine)
        name = self._engine.name if self._engine else None
        return Health(response.status_code == 200, told or f"status {response.status_code}", name, models=self._models)

    async def check(self) -> Balance:
        """`GET /v1/models` with the key, which /health does not ask for; it names the checkpoint besides."""
        try:
            async with self._client.stream(
                "GET", f"{self._base}/v1/models", headers=self._headers, timeout=10.0
            ) as response:
                body = await read_body(response)
        except UNREADABLE as error:
            raise ProviderError("unsent", f"no answer: {plain_name(error)}") from error
        if response.status_code in (401, 403):
            raise self._refusal(response, body)
        self._models = _served(parse_json(body))
        return Balance(None)

    async def submit(self, request: GenerationRequest, image_urls: Sequence[str]) -> Submission:
        """POST once, and return with the opened answer."""
        pictures = [base64.b64decode(url.partition(",")[2]) for url in image_urls]
        first = await asyncio.to_thread(_size_of_first, pictures)
        fields = fields_of(request, first)
        options: dict[str, Any] = {"json": fields}
        if pictures:
            files = [
                ("image", (f"{number}.bin", data, _media(url)))
                for number, (data, url) in enumerate(zip(pictures, image_urls, strict=True))
            ]
            options = {"data": {name: str(value) for name, value in fields.items()}, "files": files}
        call = self._client.build_request(
            "POST",
            f"{self._base}/v1/images/{'edits' if pictures else 'generations'}",
            headers=self._headers,
            **options,
        )
        try:
            response = await self._client.send(call, stream=True)
            if response.status_code == 200:
                return Submission(request, None, open_body=(response, fields["size"]))
            body = await read_body(response)
        except UNREADABLE as error:
            raise ProviderError("unknown", f"no answer: {plain_name(error)}") from error
        raise self._refusal(response, body)

    def _picture_text(self, body: bytes) -> str:
        """The one picture of an answer, in base64. Raises ProviderError."""
        value = parse_json(body)
        items = value.get("data") if isinstance(value, dict) else None
        item = items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}
        text, url = item.get("b64_json"), item.get("url")
        if not text and isinstance(url, str) and url[:5].lower() == "data:":
            text = url
        if not isinstance(text, str) or not text:
            what = "a URL instead of the image's bytes" if url else "no image"
            text = redact(error_text(body), self._key)[:200]
            raise ProviderError("bad_output", f"the answer has {what}: {text}", status=200)
        return text

    def _refusal(self, response: httpx.Response, body: bytes) -> ProviderError:
        """What an answer other than success means; a redirect is another service's."""
        status = response.status_code
        other = "unavailable" if status > 500 else "invalid_request" if status >= 400 else "protocol"
        return ProviderError(
            _STATUS_KINDS.get(status, other),
            f"{status}: {redact(error_text(body), self._key)}",
            status=status,
            retry_after=pause_seconds(
                reset=None, retry_after=response.headers.get("retry-after"), now=datetime.now(UTC)
            ),
        )

    async def collect(self, submission: Submission) -> Delivery:
        """Read the answer: one picture in base64, of the size that was asked for."""
        response, size = submission.open_body
        try:
            body = await read_body(response)
        except UNREADABLE as error:
            raise ProviderError("unknown", f"the answer broke off: {plain_name(error)}") from error
        text = self._picture_text(body)
        try:
            data = decode_base64(text)
        except ValueError as error:
            raise ProviderError("bad_output", f"the image is cut off, or no base64: {error}", status=200) from error
        try:
            if lacks_padding(text):
                await asyncio.to_thread(decode, data)  # a picture that is cut off looks like one that is not padded
            found = "{}x{}".format(*upright_size(data))
        except BadImageError as error:
            raise ProviderError("bad_output", str(error), status=200) from error
        if found != size:
            raise ProviderError("bad_output", f"the image has {found} pixels instead of {size}", status=200)
        applied: dict[str, Any] = {"size": size}
        negative = submission.request.params.get("negative_prompt")
        if negative and self._engine is not None and not self._engine.uses_negative_prompt:
            applied["negative_prompt"] = ""
        return Delivery(data, http_status=200, applied=applied)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def fields_of(request: GenerationRequest, first: tuple[int, int] | None) -> dict[str, Any]:
    """The fields of a call, for generations (JSON) and edits (a form) alike; `first` is the first reference's size.

    Raises ProviderError (`invalid_request`) for an aspect ratio without a known size.
    """
    params = {name: plain_number(value) for name, value in request.params.items()}
    ratio = params.get("aspect_ratio", "1:1")
    try:
        width, height = pixels_of(ratio, first)
    except KeyError:
        raise ProviderError("invalid_request", f"no size is known for the aspect ratio {ratio!r}") from None
    image_format = params.get("image_format", "png")
    fields = {
        "prompt": request.prompt,
        "n": 1,
        "size": f"{width}x{height}",
        "response_format": "b64_json",
        "seed": request.seed,
        # Seeds drawn on the CPU mean the same on every kind of GPU.
        "generator_device": "cpu",
        "num_inference_steps": params.get("steps", 4),
        "guidance_scale": float(params.get("cfg", 1)),
        "output_format": image_format,
        "output_compression": _PNG_COMPRESSION if image_format == "png" else params.get("quality", 90),
    }
    # SGLang guides by any negative prompt, the empty one included, even where the checkpoint is distilled.
    if params.get("negative_prompt") and fields["guidance_scale"] > 1:
        fields["negative_prompt"] = params["negative_prompt"]
    return fields


def _size_of_first(pictures: Sequence[bytes]) -> tuple[int, int] | None:
    """The size of the first reference, upright, in pixels. Raises ProviderError where any is no picture."""
    sizes = []
    for number, data in enumerate(pictures, 1):
        try:
            sizes.append(upright_size(data))
        except BadImageError as error:
            raise ProviderError("invalid_request", f"reference {number} is no picture: {error}") from error
    return sizes[0] if sizes else None


def _served(value: Any) -> frozenset[str] | None:
    """The models that a list of checkpoints stands for; None where their names do not tell."""
    items = value.get("data") if isinstance(value, dict) else None
    names = [str(item.get("id")) for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    if not names or not all("klein" in name.lower() for name in names):
        return None
    return frozenset(slug for name in names for slug in models_of(name, MODELS))


def _media(url: str) -> str:
    return url[len("data:") :].partition(";")[0]
