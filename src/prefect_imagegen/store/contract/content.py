"""Checks of what an object keeps: its bytes, its content type and its time."""

from prefect_imagegen.store.contract.bench import Bench, Outcome

_SKEW_S = 60.0
_LARGE = 8 << 20


async def large_object(bench: Bench) -> Outcome:
    """An object of 8 MiB comes back byte for byte."""
    data = bytes(range(256)) * (_LARGE // 256)
    path = bench.path("x")
    await bench.first.put(path, data)
    content, info = await bench.second.get(path), await bench.second.head(path)
    if content == data and info is not None and info.size == len(data):
        return "ok", f"{_LARGE >> 20} MiB come back byte for byte"
    returned = "nothing" if content is None else f"{len(content):,} bytes"
    return "fail", f"of {len(data):,} bytes came back {returned}" + (", which differ" if content != data else "")


async def empty_object(bench: Bench) -> Outcome:
    """An object without content is kept."""
    path = bench.path("x")
    await bench.first.put(path, b"")
    content, info = await bench.second.get(path), await bench.second.head(path)
    if content == b"" and info is not None and info.size == 0:
        return "ok", "an object without content is kept"
    return "fail", f"an object without content came back as {content!r}"


async def content_type(bench: Bench) -> Outcome:
    """An object has the content type that it was written with."""
    path = bench.path("x.png")
    await bench.first.put(path, b"1", "image/png")
    info = await bench.second.head(path)
    if info is None or info.content_type is None:
        return "unknown", "the store tells no content type"
    if info.content_type == "image/png":
        return "ok", "an object has the content type that it was written with"
    return "warn", f"an object that was written as image/png is {info.content_type}"


async def clock(bench: Bench) -> Outcome:
    """This machine's clock and the store's differ by at most a minute."""
    path = bench.path("x")
    await bench.first.put(path, b"1")
    info = await bench.first.head(path)
    if info is None or info.modified is None:
        return "unknown", "the store tells no times"
    skew = (bench.clock.now() - info.modified).total_seconds()
    if abs(skew) <= _SKEW_S:
        return "ok", f"this machine and the store differ by less than {_SKEW_S:.0f} s"
    return "warn", f"this machine is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the store"
