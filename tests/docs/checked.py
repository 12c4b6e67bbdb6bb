"""Blocks of documents that are not run: their commands, options, imports and keywords have to be there all the same."""

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prefect_imagegen.app.config.options import RunOptions
from prefect_imagegen.cli.main import cli
from tests.deployments.terminal import Block

ROOT = Path(__file__).parents[2]
OTHER_PROGRAMS = {".", "export", "git", "pip", "prefect", "python3"}
"""What a block that is not run may call besides ours."""


def check(block: Block) -> None:
    """Fail where a block names what is not there."""
    if block.language == "python":
        _check_python(ast.parse(block.code))
    else:
        assert block.language == "bash", block.language
        for words in commands(block.code):
            _check_command(words)


def commands(code: str) -> Iterator[list[str]]:
    """The simple commands of a shell text, without their assignments."""
    code = re.sub(r"(?:^|(?<=\s))#.*", "", code, flags=re.MULTILINE)
    lexer = shlex.shlex(code.replace("\\\n", " ").replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in (";", "&&", "|", "&"):
            while words and words[0].partition("=")[0].isupper():
                words = words[1:]
            if words:
                yield words
            words = []
        else:
            words.append(word)


def _check_command(words: list[str]) -> None:
    program, *arguments = words
    name = Path(program).name
    if name == "prefect-imagegen":
        with cli.make_context(name, arguments[:1], resilient_parsing=True) as context:
            command = cli.get_command(context, arguments[0])
            assert command is not None, arguments
            command.make_context(arguments[0], arguments[1:], parent=context)
    elif name == "python":
        assert (ROOT / arguments[0]).is_file(), arguments
        source = (ROOT / arguments[0]).read_text(encoding="utf-8")
        assert all(word in source for word in arguments if word.startswith("--")), arguments
    else:
        assert name in OTHER_PROGRAMS or program == ".", words


def _check_python(tree: ast.Module) -> None:
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            _check_call(node, names)


def _check_call(call: ast.Call, names: dict[str, Any]) -> None:
    """Its keywords have to be parameters, fields, or options of a run."""
    called = _value(call.func, names)
    if called is None:
        return
    keywords = {keyword.arg for keyword in call.keywords if keyword.arg}
    if inspect.isclass(called) and issubclass(called, BaseModel):
        known = set(called.model_fields)
    else:
        parameters = inspect.signature(getattr(called, "fn", called)).parameters
        takes_options = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        known = set(parameters) | (set(RunOptions.model_fields) if takes_options else set())
    assert keywords <= known, f"{ast.unparse(call)}: no {sorted(keywords - known)}"


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """What an expression of imported names and their attributes is; None for others."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        base = _value(node.value, names)
        return None if base is None else getattr(base, node.attr)
    return None
