"""Plain settings of a store, made by blocks, the command line and Python callers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """A store: an fsspec URL and its options. Options may hold secrets: they are never shown or stored."""

    url: str
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    public_base_url: str | None = None
