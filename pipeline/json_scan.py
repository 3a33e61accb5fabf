"""Go through a large JSON text piece by piece, without making all of it into objects.

Strict: what `json` takes beyond the standard (NaN, Infinity) is refused.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

_BLANK = re.compile(r"[ \t\n\r]*")


class JsonScanner:
    """A place in a text, moved on by what is read.

    All methods raise ValueError for what is no JSON, and RecursionError for what is too deep.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._decoder = json.JSONDecoder(parse_constant=_refuse_constant)

    def names(self) -> Iterator[str]:
        """The names of the outermost object; whoever asks for the next has read the value."""
        self._expect("{")
        while not self._ends("}"):
            name = self.value()
            if not isinstance(name, str):
                raise ValueError("a name of the outermost object is no text")
            self._expect(":")
            yield name

    def items(self) -> Iterator[tuple[object, int, int]]:
        """Each item of a list, and its start and end."""
        self._expect("[")
        while not self._ends("]"):
            self._skip()
            start = self.at
            yield self.value(), start, self.at

    def end(self) -> None:
        """Make sure that nothing follows."""
        self._skip()
        if self.at != len(self.text):
            raise ValueError("text follows after the end")

    def _ends(self, closing: str) -> bool:
        """Pass the closing bracket if it comes, else the comma before an item but the first."""
        is_first = self.text[self.at - 1] in "{["
        self._skip()
        if self.text.startswith(closing, self.at):
            self.at += 1
            return True
        if not is_first:
            self._expect(",")
        return False

    def value(self) -> Any:  # noqa: ANN401  # any JSON
        """The next value, whole."""
        self._skip()
        value, self.at = self._decoder.raw_decode(self.text, self.at)
        return value

    def _expect(self, mark: str) -> None:
        self._skip()
        if not self.text.startswith(mark, self.at):
            raise ValueError(f"{mark!r} was expected at character {self.at}")
        self.at += 1

    def _skip(self) -> None:
        blank = _BLANK.match(self.text, self.at)
        assert blank is not None
        self.at = blank.end()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
