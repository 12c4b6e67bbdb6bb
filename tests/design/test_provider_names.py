"""No provider's name stands where it does not belong, and none is told from another by its name."""

import ast
import re
from pathlib import Path

from prefect_imagegen.providers.registry import PROVIDERS
from tests.design.test_structure import ROOT, product

HOME = re.compile(
    r"^src/prefect_imagegen/(providers/segmind/|providers/registry\.py|gateway/|core/request/models)|^blocks/"
)
"""Where the paid API may be named: its folder, the list of providers, the gateway, its models, the blocks."""
EXCEPTIONS = {
    "src/prefect_imagegen/__init__.py": "the block is a public name",
    "src/prefect_imagegen/app/api.py": "the default of `backend`",
    "src/prefect_imagegen/app/config/option_groups.py": "help of options: what the default is, and a worker's dialect",
    "src/prefect_imagegen/cli/generate.py": "what to do after the demo",
    "src/prefect_imagegen/cli/options.py": "the names that help and completion show without loading providers",
    "src/prefect_imagegen/cli/serve.py": "help: the protocol that the gateway speaks",
    "src/prefect_imagegen/core/metadata.py": "the explanation of the column `backend`",
    "src/prefect_imagegen/providers/pool/dialects.py": "the dialect of workers that are our gateway",
    "src/prefect_imagegen/providers/settings.py": "the default provider",
    "flows/generate_images.py": "the default and the help of the parameter `backend`",
    "flows/parameter_secrets.py": "a remedy that names the block",
}
"""Other places, each with the reason why it has to name it."""
_NAMED = re.compile(r"segmind", re.IGNORECASE)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _naming() -> set[str]:
    return {_name(path) for path in product() if _NAMED.search(path.read_text(encoding="utf-8"))}


def test_the_paid_api_is_named_at_home_only():
    """Code, comments and docstrings name it in its own rooms, and where a reason is given here."""
    assert sorted(name for name in _naming() if not HOME.match(name) and name not in EXCEPTIONS) == []


def test_every_exception_is_needed():
    """An exception that is not needed any more is gone from the list."""
    assert sorted(set(EXCEPTIONS) - _naming()) == []


def _texts(node: ast.expr) -> set[str]:
    """The texts that an operand of a comparison is, or lists."""
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


_OF_A_PROVIDER = re.compile(r"(provider|backend|\.name\b)")


def compares_names(source: str) -> list[int]:
    """The lines on which a provider's name is compared with something that holds one."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Compare | ast.MatchValue):
            continue
        operands = [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node.value]
        named = set().union(*(_texts(operand) for operand in operands)) & set(PROVIDERS)
        certain = named - {"sandbox"}  # also a kind of store
        if certain or (named and any(_OF_A_PROVIDER.search(ast.unparse(operand)) for operand in operands)):
            lines.append(node.lineno)
    return lines


def test_no_provider_is_told_by_its_name():
    """What depends on the provider asks its abilities or its entry."""
    found = {_name(path): compares_names(path.read_text(encoding="utf-8")) for path in product()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_comparisons_of_names_are_seen():
    """The test sees the comparisons that there were."""
    assert compares_names('if settings.provider == "pool":\n    pass') == [1]
    assert compares_names('x = provider.provider in ("sandbox", "segmind")') == [1]
    assert compares_names('y = event["backend"] == "sandbox"') == [1]
    assert compares_names('z = planned_run.kind == "sandbox"') == []
