"""Compare a wheel with the source tree: `check_wheel.py WHEEL`. A sub-package that `packages` forgot is missing."""

import re
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = {"src/prefect_imagegen": "prefect_imagegen"} | {
    room: f"prefect_imagegen/{room}" for room in ("blocks", "tasks", "flows")
}


def expected() -> set[str]:
    """The files that the wheel must hold, by their names in it."""
    files = set()
    for folder, name in ROOMS.items():
        base = ROOT / folder
        for path in base.rglob("*"):
            inside = path.relative_to(base)
            linked = folder == "src/prefect_imagegen" and inside.parts[0] in ROOMS
            if not linked and (path.suffix == ".py" or path.name == "py.typed"):
                files.add(f"{name}/{inside.as_posix()}")
    return files


def differences(wheel: Path) -> list[str]:
    """The files that a wheel lacks or has too much, one text each."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    meta = {name for name in names if ".dist-info/" in name}
    texts = [f"missing: {name}" for name in sorted(expected() - names)]
    texts += [f"too much: {name}" for name in sorted(names - meta - expected())]
    description = zipfile.ZipFile(wheel).read(next(name for name in meta if name.endswith("/METADATA"))).decode()
    if "# prefect-imagegen" not in description:
        texts.append("missing: the description")
    texts += [f"a link that PyPI cannot follow: {link}" for link in re.findall(r"\]\((?!https?:)[^)]*\)", description)]
    if not any(name.endswith("/LICENSE") for name in meta):
        texts.append("missing: LICENSE")
    return texts


if __name__ == "__main__":
    texts = differences(Path(sys.argv[1]))
    print("\n".join(texts) or "the wheel holds every file of the tree, and no other")  # noqa: T201 - a script
    sys.exit(bool(texts))
