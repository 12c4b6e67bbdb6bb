"""What S3 look-alikes do otherwise in names and listings: late, short, incomplete, or of other objects."""

import re
from urllib.parse import unquote

from .proxy import Answer, Call, Fault, refusal

_CONTENTS = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
_KEY = re.compile(rb"<Key>(.*?)</Key>", re.DOTALL)


class ListsLate(Fault):
    """Shows what was written or removed only after so many listings of it."""

    def __init__(self, looks: int, *, written: bool = True, removed: bool = True, path: str = "") -> None:
        self.looks, self.written, self.removed, self.path = looks, written, removed, path
        self.hidden: dict[str, int] = {}
        self.ghosts: dict[str, int] = {}

    async def after(self, call: Call, answer: Answer) -> Answer:
        if self.path in call.key and answer.status < 300 and call.method in ("PUT", "DELETE"):
            (self.ghosts if call.method == "DELETE" else self.hidden)[call.key] = self.looks
            (self.hidden if call.method == "DELETE" else self.ghosts).pop(call.key, None)
        if not call.is_list:
            return answer
        prefix, body = call.query.get("prefix", ""), answer.body
        for item in _CONTENTS.findall(body):
            key = _key(item)
            if self.written and self.hidden.get(key, 0) > 0:
                self.hidden[key] -= 1
                body = body.replace(item, b"")
        for key, left in self.ghosts.items():
            if self.removed and key.startswith(prefix) and left > 0:
                self.ghosts[key] -= 1
                body = body.replace(b"</ListBucketResult>", _item(key) + b"</ListBucketResult>")
        return Answer(answer.status, answer.headers, body)


class ShortPages(Fault):
    """Lists a few objects a page, whatever it was asked for."""

    def __init__(self, size: int) -> None:
        self.size = size

    async def before(self, call: Call) -> Answer | None:
        if call.is_list:
            call.query["max-keys"] = str(self.size)
        return None


class LosesPages(Fault):
    """Says after the first page of a listing that there is no more."""

    async def after(self, call: Call, answer: Answer) -> Answer:
        if call.is_list:
            answer.body = answer.body.replace(b"<IsTruncated>true<", b"<IsTruncated>false<")
            answer.body = re.sub(rb"<NextContinuationToken>.*?</NextContinuationToken>", b"", answer.body)
        return answer


class PlainNames(Fault):
    """Lists names as they are, though it was asked for encoded ones, and does not say so."""

    async def before(self, call: Call) -> Answer | None:
        if call.is_list:
            call.query.pop("encoding-type", None)
        return None


class PlainNamesSaidEncoded(PlainNames):
    """Lists names as they are, and says that they are encoded."""

    async def after(self, call: Call, answer: Answer) -> Answer:
        if call.is_list:
            end = b"<EncodingType>url</EncodingType></ListBucketResult>"
            answer.body = answer.body.replace(b"</ListBucketResult>", end)
        return answer


class FoldsCase(Fault):
    """Takes names that differ in upper and lower case for the same."""

    async def before(self, call: Call) -> Answer | None:
        call.key = call.key.lower()
        return None


class FoldsSlashes(Fault):
    """Takes several slashes for one, in names and in prefixes."""

    async def before(self, call: Call) -> Answer | None:
        call.key = re.sub("/+", "/", call.key)
        return None


class LeaksSiblings(Fault):
    """Lists names that only begin like a folder."""

    async def before(self, call: Call) -> Answer | None:
        if call.is_list and "prefix" in call.query:
            call.query["prefix"] = call.query["prefix"].rstrip("/")
        return None


class RefusesLists(Fault):
    """Lets nobody list."""

    async def before(self, call: Call) -> Answer | None:
        return refusal(403, "AccessDenied", "Access Denied") if call.is_list else None


def _key(item: bytes) -> str:
    match = _KEY.search(item)
    return unquote(match[1].decode()) if match else ""


def _item(key: str) -> bytes:
    time = "2026-01-01T00:00:00.000Z"
    return f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>{time}</LastModified></Contents>".encode()
