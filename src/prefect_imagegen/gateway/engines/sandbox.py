"""The engine `sandbox`: placeholder images drawn with Pillow, deterministic and visibly marked."""

import random
import textwrap
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps, PngImagePlugin
from PIL.ImageFont import FreeTypeFont

from prefect_imagegen.core.images.image import CONTENT_TYPES, encode
from prefect_imagegen.core.images.reference_pictures import plain_picture
from prefect_imagegen.gateway.engines.base import ImageJob, ImageOutput, PaintingEngine

_LABEL = "SANDBOX · no model"
_MAX_TEXT = 600


class SandboxEngine(PaintingEngine):
    """Draws the prompt over a random gradient, with the references as thumbnails."""

    def paint(self, job: ImageJob) -> ImageOutput:
        """Draw the placeholder: always the same for one request, different for others; 40 ms at one megapixel."""
        size = (job.width, job.height)
        image = _gradient(random.Random(job.identity), size)  # noqa: S311 - colours, no secrets
        if job.references:
            _compose(image, job.references)
        _draw_texts(image, job)
        return ImageOutput(_encode(image, job), CONTENT_TYPES[job.image_format])


def _gradient(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """A smooth gradient of a few colours, with discs of light in it."""
    hue = rng.random()
    small = Image.new("HSV", (4, 4))
    small.putdata(
        [
            (
                int(255 * (hue + rng.uniform(-0.12, 0.12) + (0.45 if rng.random() < 0.2 else 0.0))) % 256,
                rng.randint(90, 190),
                rng.randint(70, 215),
            )
            for _ in range(16)
        ]
    )
    image = small.convert("RGB").resize((size[0] // 4, size[1] // 4), Image.Resampling.BICUBIC)
    light = Image.new("L", image.size, 0)
    brush = ImageDraw.Draw(light)
    for _ in range(5):
        radius = rng.uniform(0.05, 0.3) * min(image.size)
        x, y = rng.uniform(0, image.width), rng.uniform(0, image.height)
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=rng.randint(15, 50))
    # Drawn small and without antialiasing, the edges would show as steps once enlarged.
    light = light.filter(ImageFilter.GaussianBlur(2))
    image.paste(Image.new("RGB", image.size, "white"), mask=light)
    return image.resize(size, Image.Resampling.BILINEAR)


def _compose(image: Image.Image, references: Sequence[bytes]) -> None:
    """Draw the references as framed thumbnails in a row, in order."""
    side = min(image.width // (len(references) + 1), image.height // 3)
    gap = (image.width - side * len(references)) // (len(references) + 1)
    for position, data in enumerate(references):
        thumbnail = ImageOps.fit(plain_picture(data), (side, side))
        framed = ImageOps.expand(thumbnail, border=max(2, side // 60), fill="white")
        image.paste(framed, (gap + position * (side + gap), image.height // 12))


def _draw_texts(image: Image.Image, job: ImageJob) -> None:
    brush = ImageDraw.Draw(image, "RGBA")
    unit = min(image.size)
    band = max(24, unit // 16)
    brush.rectangle((0, image.height - band, image.width, image.height), fill=(0, 0, 0, 170))
    label = f"{_LABEL} · {job.model} · seed {job.seed}"
    font = _fitting_font(label, band * 0.5, image.width * 0.94)
    brush.text((image.width * 0.03, image.height - band / 2), label, font=font, fill="white", anchor="lm")
    text = _printable(job.prompt)
    if not text:
        return
    area = image.height * (0.5 if job.references else 0.8)
    lines, font, step = _wrapped(text, image.width * 0.88, area, unit)
    top = image.height - band - area + (area - step * len(lines)) / 2
    for number, line in enumerate(lines):
        place = (image.width / 2, top + step * (number + 0.5))
        brush.text(place, line, font=font, fill="white", anchor="mm", stroke_width=2, stroke_fill=(0, 0, 0, 140))


def _wrapped(text: str, width: float, height: float, unit: int) -> tuple[list[str], FreeTypeFont, float]:
    """The text in lines, with font and line height, in the largest size that fits the area."""
    for divisor in (12, 16, 20, 26, 34, 44):
        size = max(10, unit // divisor)
        lines = textwrap.wrap(text, max(8, int(width / (size * 0.52))))
        if len(lines) * size * 1.3 <= height:
            break
    fitting = lines[: max(1, int(height / (size * 1.3)))]
    longest = max(fitting, key=len)
    return fitting, _fitting_font(longest, size, width), size * 1.3


def _fitting_font(text: str, size: float, width: float) -> FreeTypeFont:
    """The font in this size, or smaller if the text would be wider than `width`."""
    font = _font(max(8, int(size)))
    length = font.getlength(text)
    return font if length <= width else _font(max(8, int(size * width / length)))


@lru_cache(maxsize=64)
def _font(size: int) -> FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, FreeTypeFont):
        raise TypeError("Pillow was built without FreeType")
    return font


def _printable(prompt: str) -> str:
    """The prompt in characters that Pillow's own font has (else a middle dot), cut with an ellipsis if long."""
    text = " ".join(prompt[: 2 * _MAX_TEXT].split())
    text = "".join(char if ord(char) < 0x250 and char.isprintable() else "·" for char in text)
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _encode(image: Image.Image, job: ImageJob) -> bytes:
    note = f"{_LABEL}; {job.model}; seed {job.seed}"
    if job.image_format == "png":
        info = PngImagePlugin.PngInfo()
        info.add_text("Software", "prefect-imagegen sandbox")
        info.add_text("Comment", note)
        return encode(image, "png", job.quality, pnginfo=info)
    exif = Image.Exif()
    exif[0x0131] = "prefect-imagegen sandbox"
    exif[0x010E] = note.replace("·", "-")
    return encode(image, job.image_format, job.quality, exif=exif)
