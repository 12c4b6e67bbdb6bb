"""Names in the Prefect UI: names and tags of flow runs, keys of artifacts."""

import hashlib
import re
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from prefect.runtime import deployment, flow_run

TAG = "imagegen"


def run_name() -> str:
    """The name of the current flow run, such as `products to campaign` (manifest to store)."""
    parameters = flow_run.parameters
    return f"{_last_part(str(parameters.get('manifest', '')))} to {_last_part(str(parameters.get('store', '')))}"


def artifact_key(kind: str, store: str) -> str:
    """The key of an artifact: one for each deployment; outside of deployments, one for each store.

    Prefect shows the artifacts of one key as versions of one thing, so unrelated runs need different keys. Keys have
    lower case letters, digits and dashes only.
    """
    if deployment.id is not None and deployment.name:
        name = str(deployment.name)
        # Letters outside of ASCII are lost in a key: a digest keeps such names apart.
        return f"imagegen-{kind}-{_slug(name)}" + ("" if name.isascii() else f"-{_digest(name)}")
    return f"imagegen-{kind}-{_slug(_last_part(store))}-{_digest(store.rstrip('/'))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _last_part(url: str) -> str:
    """The last folder or the file's stem of a URL or path, without the query, which may hold secrets."""
    try:
        parts = urlsplit(url) if "://" in url else None
        path = (parts.path.strip("/") or parts.hostname or "") if parts else url
    except ValueError:  # not a URL: the run will be refused for that
        path = ""
    name = PurePosixPath(path).name
    return name.partition(".")[0] or name or "store"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "run"
