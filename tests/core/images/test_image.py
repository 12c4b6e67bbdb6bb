"""What the bytes of an image say: decoded in full, since anything less lets truncated files pass."""

import hashlib

import pytest
from PIL import Image, ImageDraw

from prefect_imagegen.core.images.image import BadImageError, decode, facts_of
from tests.support.builders.images import encoded

FORMATS = ("png", "jpeg", "webp")
WHITE = (255, 255, 255)


def noise(kind: str, size=(160, 96)) -> bytes:
    return encoded(Image.effect_noise(size, 70).convert("RGB"), kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_facts_come_from_the_bytes(kind) -> None:
    """Size, format, hash and media type are those of the decoded bytes."""
    data = noise(kind)
    facts = decode(data)
    assert (facts.width, facts.height, facts.format, facts.flags) == (160, 96, kind, ())
    assert facts.sha256 == hashlib.sha256(data).hexdigest()
    assert facts.content_type == f"image/{kind}"


def test_another_format_is_told_as_it_is() -> None:
    """A format that nobody asked for is described, not guessed."""
    facts = decode(noise("gif"))
    assert (facts.format, facts.content_type) == ("gif", "image/gif")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_image_is_refused(kind, share) -> None:
    """An image that ends early is no image, wherever it ends."""
    data = noise(kind)
    with pytest.raises(BadImageError):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("missing", [1, 4, 12, 20])
def test_the_last_byte_counts(kind, missing) -> None:
    """An image without its last bytes is refused even where every pixel could be drawn."""
    with pytest.raises(BadImageError):
        decode(noise(kind)[:-missing])


def test_a_damaged_middle_is_refused() -> None:
    """A PNG whose pixels fail their checksum is refused."""
    data = bytearray(noise("png"))
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    with pytest.raises(BadImageError):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"<html><body>502</body></html>", "not a whole image (29 bytes beginning '<html><body>502"),
        (b'{"error": "x"}', "not a whole image"),
        (b"\x89PNG\r\n\x1a\n", "not a whole image"),
        (b"\xff\xd8\xff", "not a whole image"),
        (bytes(1000), "not a whole image"),
    ],
)
def test_what_is_no_image_says_what_it_is(data, words) -> None:
    """Empty, HTML, JSON and bare headers are refused in words that show their beginning."""
    with pytest.raises(BadImageError) as raised:
        decode(data)
    assert words in str(raised.value)


@pytest.mark.parametrize("colour", [(0, 0, 0), WHITE, (120, 10, 200)])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("size", [(1024, 1024), (15, 15), (1, 1)])
def test_a_one_coloured_image_is_flagged(colour, kind, size) -> None:
    """A picture of one colour, whatever its size, is kept and flagged blank."""
    assert decode(encoded(Image.new("RGB", size, colour), kind)).flags == ("blank",)


def test_nearly_black_is_blank() -> None:
    """A black picture with faint compression noise is blank too."""
    image = Image.merge("RGB", [Image.effect_noise((512, 512), 3).point(lambda value: max(0, value - 125))] * 3)
    assert decode(encoded(image, "jpeg")).flags == ("blank",)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("side", [24, 60, 400])
def test_a_packshot_is_not_blank(kind, side) -> None:
    """A white background with a small product on it is a picture, not a blank."""
    image = Image.new("RGB", (1024, 1024), WHITE)
    ImageDraw.Draw(image).ellipse((500, 500, 500 + side, 500 + side), fill=(40, 40, 60))
    assert decode(encoded(image, kind)).flags == ()


def test_a_soft_gradient_is_not_blank() -> None:
    """A calm picture is a picture."""
    image = Image.linear_gradient("L").resize((512, 512)).point(lambda value: 200 + value // 8).convert("RGB")
    assert decode(encoded(image, "png")).flags == ()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16"])
def test_every_mode_is_decoded(mode) -> None:
    """Grey, palette, transparent and 16-bit PNGs are images like any other."""
    image = Image.effect_noise((64, 48), 70)
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    assert decode(encoded(image, "png")).width == 64


@pytest.mark.parametrize("size", [(8300, 8300), (12_000, 12_000)])
def test_a_decompression_bomb_is_refused(size) -> None:
    """More pixels than any model draws are refused before they are decoded."""
    data = encoded(Image.new("1", size), "png")
    with pytest.raises(BadImageError, match="pixels"):
        decode(data)


@pytest.mark.parametrize(
    ("path", "kind", "flags"),
    [
        ("images/ab/cd.png", "jpeg", ("other_format",)),
        ("images/ab/cd.jpg", "png", ("other_format",)),
        ("images/ab/cd.png", "png", ()),
        ("images/ab/cd.jpg", "jpeg", ()),
        ("images/ab/cd.jpeg", "jpeg", ()),
        ("images/ab/cd.bin", "webp", ()),
    ],
)
def test_a_name_that_does_not_fit_is_told(path: str, kind: str, flags: tuple[str, ...]) -> None:
    """An image in another format than its name says is flagged, and its facts name the format that it really has."""
    data = noise(kind)
    facts = facts_of(path, decode(data), len(data))
    assert (facts.format, facts.flags) == (kind, flags)


def test_deep_grey_is_not_blank() -> None:
    """A picture with 16 bits a channel is judged by what is seen of it."""
    image = Image.linear_gradient("L").convert("I").point(lambda value: 9000 + value * 200).convert("I;16")
    assert decode(encoded(image, "png")).flags == ()
