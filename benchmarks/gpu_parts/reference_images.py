"""The reference images, and the differences between the images of a case and those of the loop."""

import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw

REFERENCES = 2


def draw_references(folder: Path, size: tuple[int, int]) -> list[Path]:
    """Two images with shapes and grain, as JPEG files; the same ones in every run."""
    files = []
    for number in range(REFERENCES):
        rng = random.Random(number)
        image = Image.effect_noise(size, 40).convert("RGB")
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y = rng.randrange(size[0]), rng.randrange(size[1])
            draw.ellipse((x, y, x + size[0] // 3, y + size[1] // 3), fill=tuple(rng.randrange(256) for _ in range(3)))
        files.append(folder / f"reference-{number}.jpg")
        image.save(files[-1], quality=90)
    return files


def difference(loop: Path, images: Path) -> dict[str, Any]:
    """How a case's images differ from the loop's of the same seeds: sizes, equal ones, the largest colour step."""
    largest, identical, sizes = 0, 0, set()
    files = [file for file in sorted(images.glob("*.png")) if (loop / file.name).exists()]
    for file in files:
        with Image.open(file) as image, Image.open(loop / file.name) as other:
            sizes.add(image.size == other.size)
            if image.size == other.size:
                bands = ImageChops.difference(image.convert("RGB"), other).split()
                step = max(max(index for index, count in enumerate(band.histogram()) if count) for band in bands)
                largest, identical = max(largest, step), identical + (step == 0)
    return {"compared": len(files), "same_size": sizes == {True}, "identical": identical, "largest_difference": largest}
