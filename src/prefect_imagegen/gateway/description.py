"""The OpenAPI document of the gateway: every route with all its statuses, headers and bodies.

The routes take plain requests and return plain responses, so FastAPI reads only the paths off their signatures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response

from prefect_imagegen.core.images.image import CONTENT_TYPES
from prefect_imagegen.core.request.models import DEFAULT_MODEL, MODELS, FieldSpec, ReferenceSpec
from prefect_imagegen.gateway.http.answers import JsonAnswer
from prefect_imagegen.gateway.http.fault_middleware import ENGINE_HEADER
from prefect_imagegen.gateway.http.intake import SEEDS
from prefect_imagegen.gateway.routes.calls import WITH_KEY_IF_SET
from prefect_imagegen.gateway.state.account import AccountState

Json = dict[str, Any]
_TEXT: Json = {"type": "string"}
_ADDRESS = "^(https?://.+|data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+=*)$"
_DATA_URL = "^data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+=*$"
_NUMBER: Json = {"type": "number"}
_ERRORS = {
    400: "The request, or a picture in it, cannot be taken; the text says why",
    401: "The key is missing or wrong",
    404: "There is no such thing, or no longer",
    406: "The body is no JSON, or the credits do not cover the call",
    408: "The request did not come in time",
    410: "Older requests of these days are no longer kept",
    413: "The body is larger than is taken",
    415: "The body is encoded",
    421: "A gateway without a key answers to the names of its own machine only",
    422: "The job has failed",
    429: "Too many calls; nothing was accepted",
    500: "An error of the gateway",
    503: "The engine gets ready, or the gateway is about to end",
}
_EVERYWHERE = (400, 413, 421)
_WITH_BODY = (401, 406, 408, 415, 429)


def description_router(app: FastAPI, account_state: AccountState) -> APIRouter:
    """The routes /openapi.json and /docs; they require the key where one is set."""
    router = APIRouter(dependencies=[WITH_KEY_IF_SET], include_in_schema=False)
    document = openapi_document(app, account_state)

    @router.get("/openapi.json")
    async def openapi() -> Response:
        return JsonAnswer(document)

    @router.get("/docs")
    async def docs() -> Response:
        return get_swagger_ui_html(openapi_url="openapi.json", title=app.title)

    return router


def openapi_document(app: FastAPI, account_state: AccountState) -> Json:
    """The OpenAPI document of the app's routes."""
    document = get_openapi(title=app.title, version="1", routes=app.routes)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(operation, path, method, account_state)
    document["components"] = _components(account_state)
    return document


def _complete(operation: Json, path: str, method: str, account_state: AccountState) -> None:
    """Add the key, body and answers of an operation to what FastAPI has read off its signature."""
    key, body, answers = _OPERATIONS[path]
    if key == "always" or (key == "if_set" and account_state.has_key):
        _ask_for_key(operation, account_state)
        answers = answers | {401: None}
    if body is not None:
        answers = answers | dict.fromkeys(_WITH_BODY)
        models = account_state.models if path.startswith("/v1") else []
        schema = body if body is not _GENERATION else _generation(models)
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    answers = answers | dict.fromkeys(_EVERYWHERE)
    operation["responses"] = {
        str(status): _response(status, content, is_head=method == "head") for status, content in sorted(answers.items())
    }
    for parameter in operation.get("parameters", ()):
        if parameter["name"] == "model":
            parameter["schema"] = {"type": "string", "enum": account_state.models}


def _ask_for_key(operation: Json, account_state: AccountState) -> None:
    """Describe the key. Where none is set any text will do, so it is a required header and no security scheme."""
    if account_state.has_key:
        operation["security"] = [{"key": []}]
        return
    header = {"name": "x-api-key", "in": "header", "required": True, "schema": {"type": "string", "minLength": 1}}
    operation["parameters"] = [*operation.get("parameters", ()), header]


def _components(account_state: AccountState) -> Json:
    schemas = {"Error": _object({"error": _TEXT})}
    schemes = {"key": {"type": "apiKey", "in": "header", "name": "x-api-key"}}
    return {"schemas": schemas} | ({"securitySchemes": schemes} if account_state.has_key else {})


def _response(status: int, content: Json | None, *, is_head: bool) -> Json:
    headers = {ENGINE_HEADER: _header("What draws")}
    if status == 429:
        headers["x-rate-limit-reset-at-utc"] = _header("When to come again", required=False)
    if status in (429, 503):
        headers["retry-after"] = _header("Seconds after which to come again", required=False)
    if content is None:
        content = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    response: Json = {"description": _ERRORS.get(status, "As asked for")} | content
    response["headers"] = headers | content.get("headers", {})
    if is_head:
        response.pop("content", None)
    return response


def _header(text: str, *, required: bool = True) -> Json:
    return {"description": text, "required": required, "schema": _TEXT}


def _object(properties: Mapping[str, Json], required: Sequence[str] | None = None) -> Json:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties if required is None else required),
    }


def _json(schema: Json, **more: Any) -> Json:
    return {"content": {"application/json": {"schema": schema}}, **more}


def _image_content(kinds: Sequence[str], headers: Mapping[str, Json] | None = None) -> Json:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"content": dict.fromkeys(kinds, binary), "headers": dict(headers or {})}


def _field(spec: FieldSpec) -> Json:
    schema: Json = {"type": [spec.type, "null"], "default": spec.default}
    limits = {"minimum": spec.minimum, "maximum": spec.maximum}
    schema |= {name: limit for name, limit in limits.items() if limit is not None}
    return schema | ({"enum": [*spec.choices, None]} if spec.choices else {})


def _generation(models: Sequence[str]) -> Json:
    """The schema of a call's body for these models; without any, as for v2, every object: a bad one ends as FAILED."""
    example = {"prompt": "a red cup", "seed": 7, "image_format": "png"}
    if not models:
        return {"type": "object", "example": example}
    first = DEFAULT_MODEL if DEFAULT_MODEL in models else models[0]
    slugs = [first, *(slug for slug in models if slug != first)]
    return {"anyOf": [_body(slug) for slug in slugs], "example": example}


def _body(slug: str) -> Json:
    """The schema of a body for one model."""
    spec = MODELS[slug]
    properties: Json = {
        "prompt": {"type": "string", "minLength": 1},
        "seed": {"type": "integer", "minimum": SEEDS[0], "maximum": SEEDS[-1]},
    }
    properties |= {name: _field(entry) for name, entry in spec.fields.items()}
    references = spec.references
    required = references.fields[: 1 if references.is_list and references.minimum else references.minimum]
    properties |= _reference_fields(references)
    return _object(properties, ["prompt", *required]) | {"title": slug}


def _reference_fields(spec: ReferenceSpec) -> Json:
    url = {"type": "string", "pattern": _ADDRESS}
    if not spec.is_list:
        return {
            name: url if number <= spec.minimum else url | {"type": ["string", "null"]}
            for number, name in enumerate(spec.fields, 1)
        }
    if not spec.minimum:
        return {spec.fields[0]: {"type": ["array", "null"], "items": url}}
    return {spec.fields[0]: {"type": "array", "items": url, "minItems": spec.minimum}}


_GENERATION: Json = {"type": "object"}
_METRICS = {"type": "object", "additionalProperties": _NUMBER}
_JOB = _object({"status": _TEXT, "request_id": _TEXT, "metrics": _METRICS})
_ROW = _object(
    {
        "request_id": _TEXT,
        "model_name": _TEXT,
        "model_status": {"enum": ["COMPLETED", "FAILED", "PENDING"]},
        "model_created": {"type": "string", "format": "date-time"},
        "credits_deduction": {"type": ["number", "null"]},
        "latency_ms": {"type": ["integer", "null"]},
        "request_body": _TEXT,
        "generation_url": {"type": ["string", "null"]},
        "error": {"type": ["string", "null"]},
    }
)
_IMAGE = _object({"url": _TEXT, "content_type": _TEXT, "file_name": _TEXT, "file_size": _TEXT})
_RESULT = _JOB | {
    "properties": _JOB["properties"] | {"output": _TEXT, "seed": _TEXT, "images": {"type": "array", "items": _IMAGE}}
}
_SUBMITTED = _object(
    {"request_id": _TEXT, "status": {"const": "QUEUED"}, "poll_url": _TEXT, "status_url": _TEXT, "response_url": _TEXT}
)
_FAILED = _json(_object({"status": {"const": "FAILED"}, "error": _TEXT, "request_id": _TEXT, "metrics": _METRICS}))
_STATISTICS = _object(
    {
        "calls": {"type": "object", "additionalProperties": {"type": "integer"}},
        "requests": {"type": "integer"},
        "billed": {"type": "integer"},
        "billed_twice": {"type": "integer"},
        "charged_usd": _NUMBER,
        "in_flight": {"type": "integer"},
        "max_in_flight": {"type": "integer"},
    }
)
_HEALTH = _json(_object({"status": _TEXT, "engine": _TEXT, "models": {"type": "array", "items": _TEXT}}))
_CATALOGUE = {"type": "array", "items": _object({"slug": _TEXT, "is_depreciated": {"type": "boolean"}})}
_UPLOAD = _object({"data_urls": {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": _DATA_URL}}})
_V1_HEADERS = {
    "x-request-id": _header("The id of the call"),
    "x-cost": _header("US dollars that it cost"),
    "x-generation-time": _header("Seconds that it took"),
    "x-seed-value": _header("The seed that was used"),
    "x-remaining-credits": _header("US dollars that are left"),
    "x-imagegen-applied": _header("What was used in place of what was asked for, as JSON", required=False),
}
_DRAWN = _image_content(list(CONTENT_TYPES.values()), _V1_HEADERS)
_OUTPUT = _image_content(list(CONTENT_TYPES.values()))
_ASSET = _image_content(["image/*"])
_JOB_ANSWERS: dict[int, Json | None] = {404: None, 422: _FAILED}
_OPERATIONS: Mapping[str, tuple[str, Json | None, dict[int, Json | None]]] = {
    "/v1/{model}": ("always", _GENERATION, {200: _DRAWN, 404: None, 500: None, 503: None}),
    "/v2/{model}": ("always", _GENERATION, {200: _json(_SUBMITTED), 404: None, 503: None}),
    "/v2/requests/{request_id}/status": ("always", None, _JOB_ANSWERS | {200: _json(_JOB)}),
    "/v1/requests/{request_id}": ("always", None, _JOB_ANSWERS | {200: _json(_RESULT)}),
    "/v2/requests/{request_id}": ("always", None, _JOB_ANSWERS | {200: _json(_RESULT)}),
    "/generations/{name}": ("never", None, {200: _OUTPUT, 404: None}),
    "/v1/get-user-credits": ("always", None, {200: _json(_object({"credits": _NUMBER, "free-credits": _NUMBER}))}),
    "/inference-request/request-history": (
        "always",
        None,
        {200: _json(_object({"data": {"type": "array", "items": _ROW}, "total": {"type": "integer"}})), 410: None},
    ),
    "/inference-request/request-history/{request_id}": (
        "always",
        None,
        {200: _json(_object({"data": _ROW})), 404: None},
    ),
    "/inference-model-information/list": ("never", None, {200: _json(_CATALOGUE)}),
    "/upload-asset": (
        "always",
        _UPLOAD,
        {200: _json(_object({"file_urls": {"type": "array", "items": _TEXT}, "message": _TEXT}))},
    ),
    "/assets/{name}": ("never", None, {200: _ASSET, 404: None}),
    "/health": ("never", None, {200: _HEALTH, 503: _HEALTH}),
    "/metrics": ("if_set", None, {200: {"content": {"text/plain": {"schema": _TEXT}}}}),
    "/_gateway/stats": ("always", None, {200: _json(_STATISTICS)}),
}
