"""The verbs of this repository: `nox -s test`, `lint`, `docs`, `bench`. They use the environment that nox runs in.

That is the one of `pip install -e '.[dev]'`: no session makes another, so that they start at once and work offline.
The tests of the built wheel, on fresh environments, are `.ci/run`.
"""

import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
SCRIPTS = Path(sys.executable).parent
BENCHMARKS = ("throughput", "plan_million")
"""Those that take a few minutes; the others are asked for by name."""

nox.options.sessions = ["lint", "test"]


def generated_pages() -> list[str]:
    """The tracked pages of which parts are made from the code, by cog."""
    listed = subprocess.run(
        ["git", "grep", "-l", "--untracked", "-F", "[[[cog", "--", "*.md"],  # noqa: S607 - git, wherever it is
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.split()


def tool(session: nox.Session, name: str, *arguments: str) -> None:
    """Run a tool of this environment."""
    session.run(str(SCRIPTS / name), *arguments, external=True)


@nox.session(python=False)
def test(session: nox.Session) -> None:
    """Run the tests, or those of rooms: `nox -s test -- core gateway -x`."""
    arguments = [f"tests/{word}" if (ROOT / "tests" / word).exists() else word for word in session.posargs]
    session.run(sys.executable, "-m", "pytest", *arguments, external=True)


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Check style, format, types, the rooms' imports and the generated parts of pages."""
    tool(session, "ruff", "check", ".")
    tool(session, "ruff", "format", "--check", ".")
    tool(session, "mypy")
    tool(session, "lint-imports")
    tool(session, "cog", "--check", *generated_pages())


@nox.session(python=False)
def docs(session: nox.Session) -> None:
    """Make the generated parts of pages anew, from the code, and build the site into site/; with `serve`, show it."""
    tool(session, "cog", "-r", *generated_pages())
    tool(session, "mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session(python=False)
def bench(session: nox.Session) -> None:
    """Measure: `nox -s bench -- growth`; without a name, throughput and the plan of a million rows."""
    for name in session.posargs or BENCHMARKS:
        session.run(sys.executable, f"benchmarks/{name}.py", external=True)
