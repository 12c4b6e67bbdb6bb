"""What S3 look-alikes do otherwise: each fault is one of them, as a real service or a misconfigured one shows it."""

import asyncio
import re
from collections import Counter, defaultdict

from .proxy import Answer, Call, Fault, refusal

_CHECKSUM = re.compile(r"x-amz-(sdk-checksum-algorithm|checksum-(?!mode)|trailer)")


class RefusesChecksums(Fault):
    """Does not know the checksum headers and trailers that newer clients send with every put."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        self.refusal = refusal(status, code, message)

    async def before(self, call: Call) -> Answer | None:
        return self.refusal if call.is_put and any(_CHECKSUM.match(name) for name in call.headers) else None


class RefusesChecksumMode(Fault):
    """Refuses reads that ask for checksums."""

    async def before(self, call: Call) -> Answer | None:
        return refusal(501, "NotImplemented") if "x-amz-checksum-mode" in call.headers else None


class KeepsFraming(Fault):
    """Takes the framing of aws-chunked bodies for content."""

    async def before(self, call: Call) -> Answer | None:
        call.body = call.raw_body
        return None


class RefusesPuts(Fault):
    """Refuses every put."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        self.refusal = refusal(status, code, message)

    async def before(self, call: Call) -> Answer | None:
        return self.refusal if call.is_put else None


class IgnoresConditions(Fault):
    """Takes a create-only put as any put."""

    async def before(self, call: Call) -> Answer | None:
        call.headers.pop("if-none-match", None)
        return None


class RefusesConditions(Fault):
    """Refuses every create-only put, as not implemented or invalid."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        self.refusal = refusal(status, code, message)

    async def before(self, call: Call) -> Answer | None:
        return self.refusal if call.is_conditional else None


class RacingPutsBothWin(Fault):
    """Looks first and writes later: of create-only puts at the same time, more than one is written."""

    def __init__(self) -> None:
        self.flying: Counter[str] = Counter()
        self.together: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def before(self, call: Call) -> Answer | None:
        if not call.is_conditional or "race" not in call.key:
            return None
        self.flying[call.key] += 1
        if self.flying[call.key] >= 2:
            self.together[call.key].set()
        await asyncio.wait_for(self.together[call.key].wait(), 30)
        call.headers.pop("if-none-match")
        return None


class RacingPutsConflict(Fault):
    """Answers 409 to the first create-only puts of an object, and writes none of them."""

    def __init__(self, times: int, path: str = "") -> None:
        self.left: Counter[str] = Counter()
        self.times, self.path = times, path

    async def before(self, call: Call) -> Answer | None:
        if not call.is_conditional or self.path not in call.key:
            return None
        self.left[call.key] += 1
        return refusal(409, "ConditionalRequestConflict") if self.left[call.key] <= self.times else None


class SpellsPreconditionOtherwise(Fault):
    """Answers 412 without a body, as some proxies do."""

    async def after(self, call: Call, answer: Answer) -> Answer:
        return Answer(412) if answer.status == 412 else answer


class OddETags(Fault):
    """Answers with ETags that are no MD5."""

    async def after(self, call: Call, answer: Answer) -> Answer:
        if "etag" in answer.headers:
            answer.headers["etag"] = 'W/"7-%odd"'
        return answer


class SlowsDown(Fault):
    """Is too busy for the first try of every put."""

    def __init__(self, times: int = 1) -> None:
        self.asked: Counter[str] = Counter()
        self.times = times

    async def before(self, call: Call) -> Answer | None:
        if not call.is_put:
            return None
        self.asked[call.key] += 1
        busy = refusal(503, "SlowDown", "Please reduce your request rate.")
        return busy if self.asked[call.key] <= self.times else None


class ErrorInside200(Fault):
    """Says 200 and then that it went wrong, in the body; the first time for each object, or always."""

    def __init__(self, *, always: bool = False) -> None:
        self.asked: Counter[str] = Counter()
        self.always = always

    async def before(self, call: Call) -> Answer | None:
        if not call.is_put:
            return None
        self.asked[call.key] += 1
        return refusal(200, "InternalError") if self.always or self.asked[call.key] == 1 else None


class Redirects(Fault):
    """Sends everything to another region or address."""

    def __init__(self, status: int, code: str, **headers: str) -> None:
        self.refusal = refusal(status, code, "The bucket is at another endpoint.", **headers)

    async def before(self, call: Call) -> Answer | None:
        return self.refusal


class Answers(Fault):
    """Answers everything with one refusal."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        self.refusal = refusal(status, code, message)

    async def before(self, call: Call) -> Answer | None:
        return Answer(self.refusal.status) if call.method == "HEAD" else self.refusal


class EmptyAnswers(Fault):
    """Gives objects back without their content."""

    def __init__(self, path: str = "") -> None:
        self.path = path

    async def after(self, call: Call, answer: Answer) -> Answer:
        if call.method == "GET" and call.key and self.path in call.key and answer.status == 200:
            answer.body = b""
        return answer


class HidesAbsence(Fault):
    """Says 'forbidden' of what is not there, to some methods, as for credentials that may not list."""

    def __init__(self, *methods: str) -> None:
        self.methods = methods

    async def after(self, call: Call, answer: Answer) -> Answer:
        if answer.status != 404 or not call.key or call.method not in self.methods:
            return answer
        return Answer(403) if call.method == "HEAD" else refusal(403, "AccessDenied", "Access Denied")


class ForgetsTypes(Fault):
    """Gives every object the same content type."""

    async def after(self, call: Call, answer: Answer) -> Answer:
        if call.method == "HEAD" and call.key and "content-type" in answer.headers:
            answer.headers["content-type"] = "binary/octet-stream"
        return answer


class WrongClock(Fault):
    """Lives an hour and more in the past."""

    async def after(self, call: Call, answer: Answer) -> Answer:
        if "last-modified" in answer.headers:
            answer.headers["last-modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
        return answer


class CutsLargeObjects(Fault):
    """Keeps the first 5 MiB of an object."""

    async def before(self, call: Call) -> Answer | None:
        call.body = call.body[: 5 << 20]
        return None


class RefusesEmptyObjects(Fault):
    """Wants every object to have a byte."""

    async def before(self, call: Call) -> Answer | None:
        return refusal(411, "MissingContentLength") if call.is_put and not call.body else None


class NeverRemoves(Fault):
    """Says that an object was removed, and keeps it."""

    async def before(self, call: Call) -> Answer | None:
        return Answer(204) if call.method == "DELETE" else None


class RefusesRemoval(Fault):
    """Has no permission to remove anything."""

    async def before(self, call: Call) -> Answer | None:
        return refusal(403, "AccessDenied", "Access Denied") if call.method == "DELETE" else None


class MissesAbsentOnRemoval(Fault):
    """Says 404 where what is to be removed is not there."""

    def __init__(self) -> None:
        self.removed: set[str] = set()

    async def before(self, call: Call) -> Answer | None:
        if call.is_put:
            self.removed.discard(call.key)
        if call.method != "DELETE":
            return None
        if call.key in self.removed:
            return refusal(404, "NoSuchKey")
        self.removed.add(call.key)
        return None


class OldReads(Fault):
    """Answers a read after an overwriting put with the content from before it, once for each such put."""

    def __init__(self, path: str = "") -> None:
        self.path = path
        self.bodies: dict[str, list[bytes]] = defaultdict(list)

    async def before(self, call: Call) -> Answer | None:
        if call.is_put and self.path in call.key:
            self.bodies[call.key].append(call.body)
        if call.method == "GET" and len(self.bodies.get(call.key, [])) > 1:
            return Answer(200, {"etag": '"0"'}, self.bodies[call.key].pop(0))
        return None
