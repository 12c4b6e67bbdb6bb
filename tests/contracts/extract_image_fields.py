"""Read the fields of the Images API out of the wheels of vLLM-Omni and SGLang, without installing them.

    pip download --no-deps vllm-omni==0.30.0 sglang==0.5.23
    python tests/contracts/extract_image_fields.py *.whl

writes `tests/data/openai_images/<engine>.json`: for generations (JSON) and edits (a form) each field's type and default
as the source spells them, and its bounds. Facts only: names, types, defaults, bounds.
"""

import ast
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "data" / "openai_images"
# engine: (file and class of generations, file and function of edits)
PLACES = {
    "vllm_omni": (
        ("vllm_omni/entrypoints/openai/protocol/images.py", "ImageGenerationRequest"),
        ("vllm_omni/entrypoints/openai/api_server.py", "edit_images"),
    ),
    "sglang": (
        ("sglang/multimodal_gen/runtime/entrypoints/openai/protocol.py", "ImageGenerationsRequest"),
        ("sglang/multimodal_gen/runtime/entrypoints/openai/image_api.py", "edits"),
    ),
}
_INT64 = {"_INT64_MIN": -(2**63), "_INT64_MAX": 2**63 - 1}


def field(annotation: ast.expr, default: ast.expr | None) -> dict[str, Any]:
    """Type, default and bounds of one field; a call such as `Field(None, ge=0)` is looked into."""
    facts: dict[str, Any] = {"type": ast.unparse(annotation)}
    calls = [node for node in ast.walk(annotation) if isinstance(node, ast.Call)]
    if isinstance(default, ast.Call):
        calls.append(default)
        first = next((keyword.value for keyword in default.keywords if keyword.arg == "default"), None)
        default = first or (default.args[0] if default.args else None)
    if default is not None:
        facts["default"] = ast.unparse(default)
    for call in calls:
        for keyword in call.keywords:
            if keyword.arg in ("ge", "le"):
                text = ast.unparse(keyword.value)
                facts[keyword.arg] = _INT64[text] if text in _INT64 else ast.literal_eval(keyword.value)
            if keyword.arg == "alias":
                facts["alias"] = ast.literal_eval(keyword.value)
    return facts


def fields_of(source: str, name: str) -> dict[str, dict[str, Any]]:
    """The fields of a class, or of a function's parameters, by the name that goes over the wire."""
    node = next(child for child in ast.walk(ast.parse(source)) if getattr(child, "name", None) == name)
    if isinstance(node, ast.ClassDef):
        pairs = [
            (statement.target.id, field(statement.annotation, statement.value))
            for statement in node.body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        ]
    else:
        assert isinstance(node, ast.AsyncFunctionDef)
        arguments = node.args.args
        defaults = [None] * (len(arguments) - len(node.args.defaults)) + list(node.args.defaults)
        pairs = [
            (argument.arg, field(argument.annotation, default))
            for argument, default in zip(arguments, defaults, strict=True)
            if argument.annotation is not None and "Request" not in ast.unparse(argument.annotation)
        ]
    return {facts.pop("alias", name): facts for name, facts in pairs}


def main(wheels: list[str]) -> None:
    """Write one file for each wheel."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for wheel in wheels:
        engine, version = Path(wheel).name.split("-")[:2]
        with zipfile.ZipFile(wheel) as archive:
            generations, edits = (fields_of(archive.read(path).decode(), name) for path, name in PLACES[engine])
        content = {"engine": engine, "version": version, "generations": generations, "edits": edits}
        target = TARGET / f"{engine}.json"
        target.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        print(target.name, len(generations), len(edits))  # noqa: T201 - a script


if __name__ == "__main__":
    main(sys.argv[1:])
