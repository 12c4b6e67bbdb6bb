"""What the answers of these tests hold: small images, a URL, a request id."""

import base64

from PIL import Image

from tests.support.builders.images import encoded


def picture(kind: str) -> bytes:
    return encoded(Image.effect_noise((32, 32), 60).convert("RGB"), kind)


PNG, JPEG, WEBP = picture("png"), picture("jpeg"), picture("webp")
TEXT64 = base64.b64encode(PNG).decode()
URL = "https://images.example.com/generations/ab12.png"
ID = "11111111-2222-3333-4444-555555555555"
