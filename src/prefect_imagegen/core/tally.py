"""Counting messages that contain values of the manifest, in bounded memory. Pure."""

import re
from collections import Counter

SHOWN_OF_A_KIND = 5
"""The number of texts of a kind that are counted separately; further ones are counted under the kind."""
MOST_KINDS = 100
OTHERS = "others"
"""The text under which further kinds are counted."""
_VALUES = re.compile(
    r"""
    '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*"   # quoted
    | \S*[/\\]\S*                           # an address or a path
    | \S+\.[^\s.,;:]+                       # a file's name, a decimal number
    | \S*\d\S*                              # a number, a hash
    """,
    re.VERBOSE,
)


class Tally(Counter[str]):
    """A counter of texts that stays small: it keeps the first texts of each kind, and counts the rest by kind.

    The kind of a text is the text with its values replaced: "it must lie in … to …". No count is lost.
    """

    def __init__(self, counts: Counter[str] | dict[str, int] | None = None) -> None:
        self._shown: Counter[str] = Counter()
        super().__init__()
        for text, count in (counts or {}).items():
            self[text] = count

    def __setitem__(self, text: str, count: int) -> None:
        if text not in self and (name := self._name_of(text)) != text:
            text, count = name, self[name] + count
        super().__setitem__(text, count)

    def _name_of(self, text: str) -> str:
        """The text under which a new text is counted."""
        kind = kind_of(text)
        if kind not in self._shown and len(self._shown) >= MOST_KINDS:
            return OTHERS
        self._shown[kind] += 1
        return text if self._shown[kind] <= SHOWN_OF_A_KIND else kind


def kind_of(text: str) -> str:
    """The text with … in place of every value."""
    return _VALUES.sub("…", text)
