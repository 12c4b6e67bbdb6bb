"""Counting remarks whose texts hold values of the manifest: as many texts as rows, in bounded memory. Pure."""

import re
from collections import Counter

SHOWN_OF_A_KIND = 5
"""So many texts of a kind are counted by themselves; what follows is counted as the kind."""
MOST_KINDS = 100
OTHERS = "others"
"""What further kinds are counted as."""
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
    """A counter of texts that stays small: the sum is that of all, the first texts of each kind stand as they are.

    The kind of a text is what is left without its values: "it must lie in … to …".
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
        """What a new text is counted as."""
        kind = kind_of(text)
        if kind not in self._shown and len(self._shown) >= MOST_KINDS:
            return OTHERS
        self._shown[kind] += 1
        return text if self._shown[kind] <= SHOWN_OF_A_KIND else kind


def kind_of(text: str) -> str:
    """The text with … in place of every value."""
    return _VALUES.sub("…", text)
