"""The OpenAI Images dialect, as vLLM-Omni and SGLang serve FLUX.2 [klein].

Sources: the request models of vLLM-Omni 0.30.0 and SGLang 0.5.23. Their defaults differ and surprise (an image as a
URL, the same seed for every call, 50 steps, the size of the first reference), so size, seed, steps, guidance, format
and the form of the answer are always sent. Neither limits its queue: the pool limits the calls in flight. `model` is
left out, since a wrong one is refused; references are sent as bytes, since a server that fetched them could reach the
network of the workers.
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
from prefect_imagegen.core.request.models import SPELLINGS, size_of
from prefect_imagegen.core.request.profiles import models_of
from prefect_imagegen.core.request.request import GenerationRequest, plain_number
from prefect_imagegen.net.bodies import UNREADABLE, describe_error, read_body
from prefect_imagegen.net.client import make_client
from prefect_imagegen.ports import Balance, Delivery, Health, Submission

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
    """One server program: its name, its status in /health when ready, and whether it uses negative prompts."""

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
"""The engines by the status that their /health reports when ready."""


class OpenAIImages:
    """A `providers.pool.dialects.Dialect` for one server with the Images API. Close it with `aclose`."""

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
        """`GET /health`: 200 means ready. Asked before any call: SGLang blocks calls while it warms up."""
        try:
            async with self._client.stream("GET", f"{self._base}/health", timeout=10.0) as response:
                value = parse_json(await read_body(response))
        except UNREADABLE as error:
            return Health(False, f"no answer: {describe_error(error)}")
        status = str(value.get("status") or "") if isinstance(value, dict) else ""
        self._engine = ENGINES.get(status, self._engine)
        name = self._engine.name if self._engine else None
        return Health(
            response.status_code == 200, status or f"status {response.status_code}", name, models=self._models
        )

    def expect(self, *, sandbox: bool) -> None:
        """Do nothing: the protocol names no engine, and `health` tells all there is to tell."""

    async def check(self) -> Balance:
        """`GET /v1/models`: proves the key, which /health does not ask for, and names the checkpoint.

        Raises ProviderError.
        """
        try:
            async with self._client.stream(
                "GET", f"{self._base}/v1/models", headers=self._headers, timeout=10.0
            ) as response:
                body = await read_body(response)
        except UNREADABLE as error:
            raise ProviderError("unsent", f"no answer: {describe_error(error)}") from error
        if response.status_code in (401, 403):
            raise self._refusal(response, body)
        self._models = _served(parse_json(body))
        return Balance(None)

    async def submit(self, request: GenerationRequest, image_urls: Sequence[str]) -> Submission:
        """Send one POST; returns with the opened answer. Raises ProviderError."""
        images = [base64.b64decode(url.partition(",")[2]) for url in image_urls]
        first = await asyncio.to_thread(_size_of_first, images)
        fields = fields_of(request, first)
        options: dict[str, Any] = {"json": fields}
        if images:
            files = [
                ("image", (f"{number}.bin", data, _media(url)))
                for number, (data, url) in enumerate(zip(images, image_urls, strict=True))
            ]
            options = {"data": {name: str(value) for name, value in fields.items()}, "files": files}
        call = self._client.build_request(
            "POST",
            f"{self._base}/v1/images/{'edits' if images else 'generations'}",
            headers=self._headers,
            **options,
        )
        try:
            response = await self._client.send(call, stream=True)
            if response.status_code == 200:
                return Submission(request, None, open_body=(response, fields["size"]))
            body = await read_body(response)
        except UNREADABLE as error:
            raise ProviderError("unknown", f"no answer: {describe_error(error)}") from error
        raise self._refusal(response, body)

    def _base64_image(self, body: bytes) -> str:
        """The image of an answer, in base64. Raises ProviderError (`bad_output`)."""
        value = parse_json(body)
        items = value.get("data") if isinstance(value, dict) else None
        item = items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}
        text, url = item.get("b64_json"), item.get("url")
        if not text and isinstance(url, str) and url[:5].lower() == "data:":
            text = url
        if not isinstance(text, str) or not text:
            content = "a URL instead of the image's bytes" if url else "no image"
            text = redact(error_text(body), self._key)[:200]
            raise ProviderError("bad_output", f"the answer has {content}: {text}", status=200)
        return text

    def _refusal(self, response: httpx.Response, body: bytes) -> ProviderError:
        """The error that an answer without success means; a redirect means that this is another service."""
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
        """Read the answer: one image in base64, of the size that was asked for. Raises ProviderError."""
        response, size = submission.open_body
        try:
            body = await read_body(response)
        except UNREADABLE as error:
            raise ProviderError("unknown", f"the answer broke off: {describe_error(error)}") from error
        text = self._base64_image(body)
        try:
            data = decode_base64(text)
        except ValueError as error:
            raise ProviderError("bad_output", f"the image is cut off, or no base64: {error}", status=200) from error
        try:
            if lacks_padding(text):
                await asyncio.to_thread(decode, data)  # an image that is cut off looks like one without padding
            actual = "{}x{}".format(*upright_size(data))
        except BadImageError as error:
            raise ProviderError("bad_output", str(error), status=200) from error
        if actual != size:
            raise ProviderError("bad_output", f"the image has {actual} pixels instead of {size}", status=200)
        applied: dict[str, Any] = {"size": size}
        negative = submission.request.params.get("negative_prompt")
        if negative and self._engine is not None and not self._engine.uses_negative_prompt:
            applied["negative_prompt"] = ""
        return Delivery(data, http_status=200, applied=applied)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def fields_of(request: GenerationRequest, first: tuple[int, int] | None) -> dict[str, Any]:
    """The fields of a call, the same for generations (JSON) and edits (a form).

    `first` is the size of the first reference in pixels, None without references.

    Raises ProviderError (`invalid_request`) for an aspect ratio without a known size.
    """
    params = {name: plain_number(value) for name, value in request.params.items()}
    spec = request.spec
    try:
        width, height = size_of(spec.size, params, first)
    except KeyError as error:
        raise ProviderError("invalid_request", f"no size is known for the aspect ratio {error}") from None
    asked_format = spec.format_of(params)
    image_format = SPELLINGS.get(asked_format, asked_format)
    fields = {
        "prompt": request.prompt,
        "n": 1,
        "size": f"{width}x{height}",
        "response_format": "b64_json",
        "seed": request.seed,
        # Noise made on the CPU is the same for a seed on every kind of GPU.
        "generator_device": "cpu",
        "num_inference_steps": params.get("steps", 4),
        "guidance_scale": float(params.get("cfg", 1)),
        "output_format": image_format,
        "output_compression": _PNG_COMPRESSION if image_format == "png" else spec.quality_of(params),
    }
    # SGLang applies guidance for any negative prompt, even an empty one or with a distilled checkpoint.
    if params.get("negative_prompt") and fields["guidance_scale"] > 1:
        fields["negative_prompt"] = params["negative_prompt"]
    return fields


def _size_of_first(images: Sequence[bytes]) -> tuple[int, int] | None:
    """The upright size of the first reference in pixels; None without references.

    Raises ProviderError (`invalid_request`) where any of them is not an image.
    """
    sizes = []
    for number, data in enumerate(images, 1):
        try:
            sizes.append(upright_size(data))
        except BadImageError as error:
            raise ProviderError("invalid_request", f"reference {number} is no picture: {error}") from error
    return sizes[0] if sizes else None


def _served(value: Any) -> frozenset[str] | None:
    """The models that the listed checkpoints serve; None where their names do not say."""
    items = value.get("data") if isinstance(value, dict) else None
    names = [str(item.get("id")) for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    if not names or not all("klein" in name.lower() for name in names):
        return None
    return frozenset(slug for name in names for slug in models_of(name))


def _media(url: str) -> str:
    return url[len("data:") :].partition(";")[0]
