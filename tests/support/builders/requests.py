"""Requests that tests make."""

from typing import Any

from prefect_imagegen.core.request.request import GenerationRequest

MODEL = "flux-2-klein-9b"


def request_for(prompt: str = "a cup", seed: int = 7, /, *, model: str = MODEL, **params: Any) -> GenerationRequest:
    """A request for one prompt, with a seed and any other parameters."""
    return GenerationRequest(model, {"prompt": prompt, "seed": seed, **params})
