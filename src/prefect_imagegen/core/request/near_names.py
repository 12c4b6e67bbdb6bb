"""Finds column names that look like fields, for warnings and suggestions."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping

from prefect_imagegen.core.request.models import MODELS, REFERENCES, known_fields, reference_fields

COMMON_FIELDS = ("prompt", "model", "seed", REFERENCES)
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "image_urls": (
        *("image", "images", "imageurl", "imagesrc", "imageurls", "imagelink", "imagepath", "imagepaths"),
        *("inputimage", "inputimages", "inputimageurl", "reference", "references", "referenceimage"),
        *("referenceimages", "referenceurl", "referenceurls", "refimage", "refimages", "sourceimage"),
    ),
    "prompt": ("prompttext", "textprompt", "imageprompt", "positiveprompt"),
    "negative_prompt": ("negative", "negprompt"),
    "cfg": ("cfgscale", "guidance", "guidancescale"),
    "steps": ("numinferencesteps", "inferencesteps", "numsteps", "numberofsteps"),
    "seed": ("randomseed", "rngseed"),
    "aspect_ratio": ("ratio", "aspect", "ar"),
    "image_format": ("outputformat", "fileformat"),
    "output_format": ("imageformat", "fileformat"),
    "model": ("modelname", "modelslug", "modelid"),
}
_LIKELY_PROMPTS = frozenset({"text", "caption", "captions", "instruction", "instructions"})
_MARKS = re.compile(r"[^a-z0-9]+")
_CLOSE = 0.88


def manifest_fields(model: str | None = None) -> frozenset[str]:
    """The fields that a manifest can feed: those of one model, or of all models where it is None or has no row."""
    spec = MODELS.get(model) if model else None
    return frozenset(COMMON_FIELDS).union(spec.fields if spec else known_fields())


def near_fields(columns: Iterable[str], taken: Collection[str], fields: frozenset[str]) -> dict[str, str]:
    """Those of some unused columns that look like one of the fields, with it; `taken` fields are fed already."""
    open_fields = fields - set(taken)
    near = {}
    for column in columns:
        name = near_field(column, fields)
        if column not in fields and name in open_fields:
            near[column] = name
    return near


def near_field(column: str, fields: frozenset[str]) -> str | None:
    """The field that a column's name looks like: in other case or spacing, as a synonym, or misspelled."""
    plain = _plain(column)
    by_plain = {_plain(name): REFERENCES for name in reference_fields()}
    by_plain |= {alias: name for name, aliases in _ALIASES.items() if name in fields for alias in aliases}
    by_plain |= {_plain(name): name for name in sorted(fields)}
    if plain in by_plain:
        return by_plain[plain]
    names = [name for name in (_plain(field) for field in sorted(fields)) if len(name) > 3]
    close = difflib.get_close_matches(plain, names, n=1, cutoff=_CLOSE)
    return by_plain[close[0]] if close else None


def likely_prompt(columns: Iterable[str]) -> str | None:
    """The column that plausibly holds the prompts; None where that would be a guess."""
    columns = list(columns)
    near = [column for column in columns if near_field(column, frozenset(COMMON_FIELDS)) == "prompt"]
    likely = near or [column for column in columns if _plain(column) in _LIKELY_PROMPTS]
    return likely[0] if len(likely) == 1 else None


def _plain(name: str) -> str:
    return _MARKS.sub("", name.lower())
