"""The fingerprint of an API key, which identifies the sender of calls without revealing the key.

An account is the sender whose calls an API key can look up, not who is billed: teammates may not see each other's.
"""

import hashlib
from urllib.parse import urlsplit

_SALT = "prefect-imagegen account v1 "
_COST, _BLOCK, _LENGTH = 2**14, 8, 8


def fingerprint_of(api_key: str, base_url: str) -> str:
    """The fingerprint of an API key at an API: 16 hex digits, computed slowly on purpose, since keys are short.

    >>> fingerprint_of("SG_0123456789abcdef", "https://api.example.com/v2") == fingerprint_of(
    ...     "SG_0123456789abcdef", "https://api.example.com"
    ... )
    True
    """
    salt = (_SALT + origin_of(base_url)).encode()
    return hashlib.scrypt(api_key.encode(), salt=salt, n=_COST, r=_BLOCK, p=1, dklen=_LENGTH).hex()


def origin_of(base_url: str) -> str:
    """The scheme, host and port of an API, without a user part, in lower case."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()
