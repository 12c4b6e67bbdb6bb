"""Which addresses a store may have: only those under which puts and listings use the same names."""

from prefect_imagegen.core.secrets import holds_secret

_MOVE = "A store that lies there already has to be moved first: at another address nothing is known of it."
BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""Protocols whose URLs begin with a bucket (on Azure: a container)."""

_WITHOUT_USERS = frozenset({"s3", "s3a", "gs", "gcs"})
"""Protocols that ignore credentials in the URL, and repeat the URL in their errors."""


def unfit(url: str) -> tuple[str, str] | None:
    """Why an address cannot be used for a store, and the remedy; None if it can be.

    Measured with s3fs 2026.9 and SeaweedFS 4: under such an address a put and a listing do not name the same objects,
    or fsspec goes to another place than the one written. All other folder names work as they are, blanks, `#` and
    `%20` included. Local paths are normalised by the operating system.
    """
    if not url.strip():
        return "is empty", "Give a bucket (s3://bucket/prefix) or a path; `.` is the present folder."
    if "::" in url:
        return "has '::', which fsspec takes for a chain of addresses", "Use an address without it."
    protocol, separator, rest = url.partition("://")
    if not separator or protocol in ("file", "local"):
        return None
    first, *folders = rest.removesuffix("/").split("/")
    rules = (
        ("?" in rest, "has a query ('?')", "Leave it out; options go into --storage-option NAME=VALUE."),
        (
            protocol in _WITHOUT_USERS and holds_secret(url),
            "holds a key or a password",
            "Leave it out; write --storage-option key=env:NAME and secret=env:NAME, or save a block image-store/NAME.",
        ),
        (protocol in BUCKETS and not first.strip(), "names no bucket", f"Write {protocol}://bucket/prefix."),
        ("" in folders, "has an empty folder name ('//')", f"Write it with one slash. {_MOVE}"),
        (
            not {".", ".."}.isdisjoint((first, *folders)),
            "has a folder '.' or '..', which leads nowhere in a bucket",
            f"Write the folders out. {_MOVE}",
        ),
        ("\\" in rest, "has a backslash", f"Write it with slashes. {_MOVE}"),
    )
    return next(((problem, remedy) for wrong, problem, remedy in rules if wrong), None)
