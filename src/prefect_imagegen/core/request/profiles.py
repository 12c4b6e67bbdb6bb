"""Profiles: which parameters of a request a FLUX.2 [klein] checkpoint on your own GPU uses.

Sources: diffusers 0.42 (`Flux2KleinPipeline`): a distilled checkpoint ignores guidance and negative prompts and was
trained for four steps; there is no `res_2s` sampler and nothing like `go_fast`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from prefect_imagegen.core.request.models import models_with_weights


@dataclass(frozen=True, slots=True)
class Profile:
    """How checkpoints of one kind are run. `fixed` holds the fields whose value cannot be changed."""

    name: str
    meaning: str
    fixed: Mapping[str, Any]

    def applied(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters as they are really used."""
        return dict(params) | {name: value for name, value in self.fixed.items() if name in params}

    def ignored(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """The fields whose requested value differs from the value used."""
        return tuple(name for name, value in self.fixed.items() if name in params and params[name] != value)


_NOWHERE = {"sampler": "euler", "go_fast": False}
PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            Profile(
                "klein-distilled",
                "FLUX.2-klein-9B, -9b-kv and -4B: 4 steps, no guidance, no negative prompt",
                MappingProxyType({"steps": 4, "cfg": 1, "negative_prompt": ""} | _NOWHERE),
            ),
            Profile(
                "klein-base",
                "FLUX.2-klein-base-9B and -base-4B: steps, guidance and negative prompt as asked",
                MappingProxyType(_NOWHERE),
            ),
        )
    }
)
DEFAULT_PROFILE = "klein-distilled"


def weights_label(path: str) -> str:
    """The name of a checkpoint: the last part of a folder or model id, which says nothing of the machine."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def models_of(path: str) -> list[str]:
    """The slugs of the models that a checkpoint serves: those with weights of the size its name tells, else all."""
    label = weights_label(path).lower()
    sizes = [size for size in ("9b", "4b") if size in label]
    return [slug for slug in models_with_weights() if not sizes or slug.rpartition("-")[2] in sizes]


def licence_of(path: str) -> str | None:
    """The licence of a FLUX.2 [klein] checkpoint as Black Forest Labs publishes it; None where the name is no such."""
    label = weights_label(path).lower()
    if "klein" not in label:
        return None
    return _NON_COMMERCIAL if "9b" in label else "Apache-2.0" if "4b" in label else None


_NON_COMMERCIAL = "FLUX Non-Commercial License"
