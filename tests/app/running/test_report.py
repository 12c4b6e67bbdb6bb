"""The report for people: what others wrote is shown in it, and does nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefect_imagegen.app.running.report import report_markdown
from prefect_imagegen.app.running.result import RunResult

HOSTILE = (
    "![](http://track.example/p.png)",
    "[click](javascript:alert(1))",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "two\n\n# lines",
    "\\![x](http://a.example)",
    "\\| \\[x](y)",
    "`</td><b>`",
    "&lt;b&gt;",
    "<http://a.example>",
    "[a]: http://b.example",
)
ALLOWED = {"h1", "p", "table", "thead", "tbody", "tr", "th", "td", "strong", "em", "code", "ul", "li", "ol", "s", "br"}


def report_of(text: str) -> str:
    result = RunResult("run-1", "store", rows=2, held=2, stop_reason="store", stop_message=text)
    result.failures, result.examples = {"server_error": 1}, {"server_error": text}
    result.held_rows = [{"row_index": 0, "id": text, "error_kind": "unknown", "request_id": text, "attempts": 1}]
    result.not_understood, result.left_out = {text: 1}, {text: text}
    return report_markdown(result)


def elements(report: str) -> list[str]:
    """The names of all elements that the report is rendered to, and `html` for what is passed through."""
    tokens = MarkdownIt("commonmark").enable("table").parse(report)
    flat = [inner for token in tokens for inner in (token, *(token.children or ()))]
    opened = [token for token in flat if token.nesting != -1]
    return [name for token in opened if (name := "html" if token.type.startswith("html") else token.tag)]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_of_anybody_is_only_text(text: str) -> None:
    """Ids of rows and messages of servers bring no pictures, links, HTML, headings or cells into the report."""
    assert elements(report_of(text)) == elements(report_of("plain"))


@given(st.lists(st.sampled_from([*"[]()!<>|`\\ #-:\n&;x\x1b", "http://a.example"]), max_size=14).map("".join))
def test_no_text_loads_anything(text: str) -> None:
    """Whatever signs come together, nothing of it is a picture, a link or HTML, and no table gets another shape."""
    tags, plain = elements(report_of(text)), elements(report_of("plain"))
    assert set(tags) <= ALLOWED
    assert tags.count("td") == plain.count("td")


@pytest.mark.parametrize(
    ("reason", "words"), [("budget", "With a higher cap (max_cost_usd)"), ("signal", "The same command")]
)
def test_a_stopped_run_says_how_to_go_on(reason: str, words: str) -> None:
    """After a stop at the cap the same command would stop again at once: the report asks for a higher cap."""
    report = report_markdown(
        RunResult("run-1", "store", rows=1, not_run=1, stop_reason=reason, stop_message="it ended")
    )
    assert f"{words}" in report
    assert ("higher cap" in report) == (reason == "budget")
