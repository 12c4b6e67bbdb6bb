"""The validated generation request, its identity (the request key) and its seed.

The canonical form, version 1: compact, key-sorted UTF-8 JSON of `{v, model, profile, weights, params}`, and of
`provider` where that has a key scope; integral floats are integers and text stays byte for byte. The request key is the
first 16 bytes of its SHA-256. Same request, same key: on every machine, in any row order, for ever (the golden tests
pin keys).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prefect_imagegen.core.images.reference_pictures import ReferenceFacts
from prefect_imagegen.core.request.models import MAX_SEED, REFERENCES, ModelSpec, spec_of

CANONICAL_VERSION = 1
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference image: its identity in the key (`kind`, `value`), its source URI and its facts."""

    kind: Literal["url", "sha256"]
    value: str
    uri: str
    facts: ReferenceFacts | None = field(default=None, compare=False)

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the bytes (hex), where it is known."""
        return self.value if self.kind == "sha256" else self.facts.sha256 if self.facts else None

    @property
    def width(self) -> int | None:
        """Pixels, as seen upright, where it was looked at."""
        return self.facts.width if self.facts else None

    @property
    def height(self) -> int | None:
        """Pixels, as seen upright, where it was looked at."""
        return self.facts.height if self.facts else None

    @property
    def changes(self) -> tuple[str, ...]:
        """What is done to the picture before it is sent."""
        return self.facts.changes if self.facts else ()

    @property
    def tag(self) -> dict[str, str]:
        """The form that enters the key: `{"url": ...}` or `{"sha256": ...}`."""
        return {self.kind: self.value}


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request for one image, with the model and every parameter resolved, seed included.

    `params` holds every field as it will be sent, `prompt` and `seed` among them; references are kept apart, in
    order, whatever the fields in which the model wants them.
    """

    model: str
    params: Mapping[str, Any]
    references: tuple[Reference, ...] = ()
    profile: str | None = None
    weights: str | None = None
    provider: str | None = None
    """The `key_scope` of its provider, where that has one: the same slug of two sellers is not the same request."""

    @property
    def spec(self) -> ModelSpec:
        """The row of the model; `UNLISTED` for one that is not known."""
        return spec_of(self.model)

    @property
    def prompt(self) -> str:
        """The prompt, as sent."""
        return str(self.params["prompt"])

    @property
    def seed(self) -> int:
        """The resolved seed."""
        return int(self.params["seed"])

    @property
    def extension(self) -> str:
        """The file name extension of the image: the requested format, the model's own where it has no such field.

        A format comes from the manifest, and the API may know more than we do: what is no plain word becomes `bin`,
        so that no manifest can name a path.
        """
        extension = self.spec.format_of(self.params)
        return extension if re.fullmatch("[a-z0-9]{1,8}", extension) else "bin"

    @property
    def reference_changes(self) -> dict[str, Any]:
        """The changes made to the references before they are sent, in the form of the metadata; empty without any."""
        changed = [
            {"position": position, "changes": list(reference.changes)}
            for position, reference in enumerate(self.references, 1)
            if reference.changes
        ]
        return {"references": changed} if changed else {}

    @property
    def cost_class(self) -> str:
        """What the price of an image depends on, as one text: the model, its price fields, the number of references.

        Requests for own GPU workers, which are free, have classes of their own, so that they do not affect prices.
        """
        spec, params = self.spec, self.params
        megapixels = spec.megapixels(params) if spec.is_priced_by_size else None
        parts = [self.model, *([] if megapixels is None else [f"megapixels={megapixels}"])]
        parts += [f"{name}={plain_number(params.get(name, '-'))}" for name in spec.price_fields]
        parts.append(f"references={len(self.references)}")
        return " ".join(parts + ([f"profile={self.profile}"] if self.profile else []))

    def canonical(self) -> bytes:
        """The bytes whose SHA-256 is the identity of the request (form version 1)."""
        defaults = self.spec.key_defaults
        plain = {name: plain_number(value) for name, value in self.params.items()}
        params = {
            name: value for name, value in plain.items() if name not in defaults or not _same(value, defaults[name])
        }
        if self.references:
            params[REFERENCES] = [reference.tag for reference in self.references]
        form = {
            "v": CANONICAL_VERSION,
            "model": self.model,
            "profile": self.profile,
            "weights": self.weights,
            "params": params,
        }
        # Left out where it is null, so that the keys of providers without a scope stay what they are.
        return canonical_json(form if self.provider is None else form | {"provider": self.provider})

    @property
    def key(self) -> bytes:
        """The request key, 16 bytes."""
        return key_of(self.canonical())

    def body(self, image_urls: Sequence[str]) -> dict[str, Any]:
        """The JSON body of the call: every parameter, and the references in the fields that the model has for them.

        Raises ValueError for more references than the model has fields for.
        """
        params = {name: plain_number(value) for name, value in self.params.items()}
        return params | self.spec.references.bind(image_urls)


def key_of(form: bytes) -> bytes:
    """The request key of a canonical form: the first 16 bytes of its SHA-256."""
    return hashlib.sha256(form).digest()[:KEY_BYTES]


def canonical_json(value: Any) -> bytes:
    """Compact, key-sorted UTF-8 JSON. Raises UnicodeEncodeError on a lone surrogate, ValueError on NaN."""
    return _CANONICAL.encode(value).encode()


def plain_number(value: Any) -> Any:
    """The value with integral floats as integers (5.0 becomes 5), so that a number has one form in keys and bodies."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def derive_seed(*, row_id: str | None, prompt: str, references: Sequence[Reference]) -> int:
    """The seed of a row that names none: from its id, else from its prompt and references; 0..2**31-1.

    Never from other parameters, the row's position, the time or the machine.
    """
    identity: dict[str, Any] = (
        {"id": row_id}
        if row_id is not None
        else {"prompt": prompt, "references": [reference.tag for reference in references]}
    )
    digest = hashlib.sha256(canonical_json({"v": CANONICAL_VERSION, **identity})).digest()
    return int.from_bytes(digest[:4], "big") & MAX_SEED


def _same(value: Any, default: Any) -> bool:
    """Equal and of one JSON type: true is not 1."""
    return bool(value == default) and isinstance(value, bool) == isinstance(default, bool)
