"""Where a JSON value ends, in a text that comes in pieces."""


class JsonEnd:
    """Follows an object, a list or a string from its first character on; it does not check what it says."""

    def __init__(self, depth: int = 0) -> None:
        """Begin before the value, or within so many objects and lists."""
        self._depth = depth
        self._in_string = self._escaped = False

    def find(self, text: str) -> int | None:
        """Read on; return how much of this piece belongs to the value if it ends here."""
        for at, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
            if self._depth <= 0 and not self._in_string:
                return at + 1
        return None
