"""Converts images of any Pillow mode: upright, 8 bits a channel, grey or RGB."""

import io
import math

from PIL import Image, ImageCms, ImageMath

_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of this EXIF orientation upright."""
DEEP_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I", "F"})
"""Grey with more than 8 bits."""
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned upright, from an EXIF orientation (1 to 8)."""
    return image.transpose(_TRANSPOSED[orientation]) if orientation in _TRANSPOSED else image


def eight_bits(image: Image.Image) -> Image.Image:
    """The image in a mode that Pillow converts to RGB. Raises ValueError if values are infinite or NaN.

    16-bit grey is divided by 256. For 32-bit grey and floating point, white is not defined: the range is taken as
    0 to 1 (floating point only), 0 to 255 or 0 to 65535, whichever is the narrowest that holds all values; else the
    least value becomes black and the greatest white.
    """
    if image.mode in DEEP_MODES:
        return _grey(image)
    if image.mode == "LAB":
        colours = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        return colours or image
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        return image.convert("RGBA")  # Pillow warns of a conversion to RGB, and does the same
    if image.mode in _PREMULTIPLIED:
        return image.convert(_PREMULTIPLIED[image.mode])
    return image


def has_alpha(image: Image.Image) -> bool:
    """Whether any pixel is transparent, in part or fully."""
    if image.mode in DEEP_MODES:
        mask = _mask(image)
        return mask is not None and mask.getextrema() != (0, 0)
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return False
    low, _ = eight_bits(image).convert("RGBA").getchannel("A").getextrema()
    return isinstance(low, int | float) and low < 255


def on_white(image: Image.Image) -> Image.Image:
    """The image in RGB (grey stays L) with 8 bits a channel, transparency laid on white."""
    mask = _mask(image) if image.mode in DEEP_MODES else None
    plain = eight_bits(image)
    if mask is not None:
        plain.paste(255, mask=mask)
    elif image.mode not in DEEP_MODES and has_alpha(image):
        layer = plain.convert("RGBA")
        plain = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    plain = plain if plain.mode in ("L", "RGB") else plain.convert("RGB")
    plain.info = {}  # what it says of transparency and profiles is done with
    return plain


def from_cmyk(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A CMYK image converted to RGB, by its colour profile if that is usable."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


def fitting_profile(profile: bytes | None, mode: str) -> bytes | None:
    """The colour profile if it is readable and made for pixels of this mode; else None."""
    if not profile:
        return None
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except (ImageCms.PyCMSError, OSError):
        return None
    return profile if space == {"RGB": "RGB", "L": "GRAY"}.get(mode) else None


def _grey(image: Image.Image) -> Image.Image:
    low, high = _extrema(image)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("some of its values are no numbers, or infinite")
    if image.mode.startswith("I;16"):
        scale, offset = 1 / 256, 0.0
    elif low >= 0 and image.mode == "F" and high <= 1:
        scale, offset = 255.0, 0.0
    elif low >= 0 and high <= 65535:
        scale, offset = (1.0 if high <= 255 else 1 / 256), 0.0
    else:
        scale = 255 / ((high - low) or 1)
        offset = -low * scale
    return image.convert("F").point(lambda value: value * scale + offset).convert("L")


def _extrema(image: Image.Image) -> tuple[float, float]:
    values = image if image.mode in ("I", "F") else image.convert("I")
    low, high = values.getextrema()
    return float(low), float(high)  # type: ignore[arg-type]


def _mask(image: Image.Image) -> Image.Image | None:
    """White where a pixel of deep grey has the value that means transparent; None where no value does."""
    key = image.info.get("transparency")
    if not isinstance(key, int) or not image.mode.startswith("I;16"):
        return None
    values = image.convert("I")
    mask: Image.Image = ImageMath.lambda_eval(
        lambda images: images["convert"]((images["a"] == key) * 255, "L"), a=values
    )
    return mask
