"""The references that are sent, and how far the images of a case are from those of the loop."""

import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw

REFERENCES = 2


def draw_references(folder: Path, size: tuple[int, int]) -> list[Path]:
    """Two pictures with shapes and grain, as JPEG files; the same ones in every run."""
    files = []
    for number in range(REFERENCES):
        dice = random.Random(number)
        picture = Image.effect_noise(size, 40).convert("RGB")
        draw = ImageDraw.Draw(picture)
        for _ in range(12):
            x, y = dice.randrange(size[0]), dice.randrange(size[1])
            draw.ellipse((x, y, x + size[0] // 3, y + size[1] // 3), fill=tuple(dice.randrange(256) for _ in range(3)))
        files.append(folder / f"reference-{number}.jpg")
        picture.save(files[-1], quality=90)
    return files


def difference(loop: Path, images: Path) -> dict[str, Any]:
    """How a case's images differ from the loop's of the same seeds: sizes, equal ones, the largest colour step."""
    largest, identical, sizes = 0, 0, set()
    files = [file for file in sorted(images.glob("*.png")) if (loop / file.name).exists()]
    for file in files:
        with Image.open(file) as one, Image.open(loop / file.name) as other:
            sizes.add(one.size == other.size)
            if one.size == other.size:
                step = max(high for _, high in ImageChops.difference(one.convert("RGB"), other).getextrema())
                largest, identical = max(largest, step), identical + (step == 0)
    return {"compared": len(files), "same_size": sizes == {True}, "identical": identical, "largest_difference": largest}
