"""What an engine gets and gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture to draw: every parameter resolved; `references` are image bytes, in order. Sizes in pixels.

    `identity` stands for the whole request: what differs in any parameter differs in it.
    """

    model: str
    prompt: str
    seed: int
    width: int
    height: int
    image_format: str
    quality: int
    request_id: str
    identity: bytes = b""
    references: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """The encoded image and its media type."""

    data: bytes
    content_type: str


class Engine(Protocol):
    """Draws pictures, called from a thread. `name` stands in /health and in every answer's header."""

    name: str

    def __init__(self, *, static_format: str, static_bytes: int) -> None:
        """Make the engine from the gateway's settings."""
        ...

    def draw(self, picture: Picture) -> Drawn:
        """Draw one picture."""
        ...
