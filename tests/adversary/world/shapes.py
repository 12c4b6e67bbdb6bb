"""The shapes in which the service tells jobs: result bodies and rows of the history."""

import base64
import json
from typing import Any

from .images import png


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""


def result_body(job: Any, traits: Any, urls: list[str]) -> dict[str, Any]:
    """The final body of a completed job."""
    metrics = {"remaining_credits": 12.27, "inference_time": 1.4, "total_time": 1.8}
    metrics |= {"cost": job.cost} if traits.costs else {}
    body: dict[str, Any] = {"status": "COMPLETED", "request_id": job.request_id, "error": None, "metrics": metrics}
    body |= {"seed": str(job.body.get("seed")), "prompt": job.prompt, "timings": {}}
    images = [{"url": url, "content_type": "image/png", "file_size": "1450316"} for url in urls]
    data = base64.b64encode(png(job.outputs[0])).decode()
    shapes: dict[str, dict[str, Any]] = {
        "full": {"output": urls[0], "images": images},
        "output": {"output": urls[0]},
        "images": {"images": images},
        "nested": {"output": {"images": images}},
        "list": {"output": urls},
        "base64": {"output": data},
        "data-url": {"output": f"data:image/png;base64,{data}"},
        "json-text": {"output": json.dumps({"images": images})},
    }
    return body | shapes[traits.result_shape]


def history_row(service: Any, job: Any, now: float, path: str) -> dict[str, Any]:
    """One row of the history, for one output, as far as its fields have landed."""
    traits, state = service.traits, job.state(now)
    created = service.local(job.accepted_at)
    forms = {
        "iso": created.isoformat(),
        "z": created.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "naive": created.replace(tzinfo=None).isoformat(),
        "sql": created.strftime("%Y-%m-%d %H:%M:%S"),
    }
    bodies = {"repr": repr, "json": json.dumps, "object": dict}
    row: dict[str, Any] = {
        "request_id": job.request_id,
        "model_name": job.model,
        "model_status": state if state in ("COMPLETED", "FAILED") else "PENDING",
        "credits_deduction": (job.cost if state == "COMPLETED" else 0) if traits.costs else None,
        "latency_ms": 15400,
        "request_body": bodies[traits.body_form](job.body),
        "generation_url": service.url(path) if state == "COMPLETED" else None,
        "error": job.fails_with if state == "FAILED" else None,
        traits.created_name: forms[traits.created_form],
    }
    names = {"body": "request_body", "url": "generation_url", "time": traits.created_name, "model": "model_name"}
    names |= {"id": "request_id", "status": "model_status"}
    for field, later in job.partial.items():
        if now < job.accepted_at + job.lag + later:
            row[names[field]] = None
    return row
