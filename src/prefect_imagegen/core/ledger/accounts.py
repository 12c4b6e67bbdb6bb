"""Who sends: the fingerprint of an API key, which tells senders apart and gives nothing of the key away.

An account is the sender whose calls a key can look up, not who is billed: a teammate's calls may be out of sight.
"""

import hashlib
from urllib.parse import urlsplit

_SALT = "prefect-imagegen account v1 "
_COST, _BLOCK, _LENGTH = 2**14, 8, 8


def fingerprint_of(api_key: str, base_url: str) -> str:
    """The fingerprint of a key at an API: 16 hex digits. Slow on purpose: keys are short.

    >>> fingerprint_of("SG_0123456789abcdef", "https://api.segmind.com/v2") == fingerprint_of(
    ...     "SG_0123456789abcdef", "https://api.segmind.com"
    ... )
    True
    """
    salt = (_SALT + origin_of(base_url)).encode()
    return hashlib.scrypt(api_key.encode(), salt=salt, n=_COST, r=_BLOCK, p=1, dklen=_LENGTH).hex()


def origin_of(base_url: str) -> str:
    """Scheme, host and port of an API."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()
