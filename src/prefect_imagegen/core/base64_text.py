"""Decoding base64 in all forms that servers write."""

import base64

_URL_SAFE = str.maketrans("-_", "+/")


def decode_base64(text: str) -> bytes:
    """The bytes of base64 text: with or without a `data:` prefix, line breaks and padding, in either alphabet.

    Takes time in proportion to the text. Raises ValueError for text that is not base64, or is cut off within a byte.
    """
    text = text.lstrip()
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.rstrip().lower().endswith(";base64"):
            raise ValueError("the data URL is not in base64")
    try:
        return base64.b64decode(text, validate=True)  # as most write it: without copies of what may be large
    except ValueError:
        pass
    packed = "".join(text.split()).translate(_URL_SAFE)
    return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)


def lacks_padding(text: str) -> bool:
    """Whether the last group of base64 text is incomplete: the text is unpadded, or cut off."""
    return len("".join(text.rpartition(",")[2].split())) % 4 != 0
