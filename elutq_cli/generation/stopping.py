"""Text that ends at the first of several stop strings."""

from collections import deque
from collections.abc import Collection, Sequence

from elutq_formats.tokenizer import TextStream, Tokenizer

LOST = "\N{REPLACEMENT CHARACTER}"


class _Matcher:
    """Finds strings in a text that comes character by character, at one step a character however many they are.

    Source: Aho and Corasick, "Efficient string matching" (1975): a tree of the strings, with a link from each node to
    the longest end of it that is a node too.

    Attributes:
        n_begun: length of the longest end of the text with which one of the strings begins.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._children: list[dict[str, int]] = [{}]
        self._depth, self._found = [0], [""]
        for string in filter(None, strings):
            node = 0
            for character in string:
                node = self._children[node].setdefault(character, len(self._children))
                if node == len(self._children):
                    self._children.append({})
                    self._depth.append(0)
                    self._found.append("")
            self._found[node] = string
        self._links = self._link()
        self._node = 0
        self.n_begun = 0

    def _link(self) -> list[int]:
        """Return the links, shallow nodes first; a string that ends within another is found there too."""
        links = [0] * len(self._children)
        nodes = deque([0])
        while nodes:
            parent = nodes.popleft()
            for character, node in self._children[parent].items():
                self._depth[node] = self._depth[parent] + 1
                links[node] = self._follow(links[parent], character, links) if parent else 0
                self._found[node] = self._found[node] or self._found[links[node]]
                nodes.append(node)
        return links

    def _follow(self, node: int, character: str, links: list[int]) -> int:
        while node and character not in self._children[node]:
            node = links[node]
        return self._children[node].get(character, 0)

    def step(self, character: str) -> str:
        """Append a character; return the longest string that it completes, or none."""
        self._node = self._follow(self._node, character, self._links)
        self.n_begun = self._depth[self._node]
        return self._found[self._node]


class StoppableText:
    """Text of a growing sequence of tokens that ends at the first of several stop strings.

    Stop strings are looked for in the text with its special tokens spelled out, which are no part of the text itself.
    What may become a stop string is held back, and the token that it is of.

    Attributes:
        stop_string: the one that was found, and ended the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        continues: bool = False,
        shown: Collection[int] = (),
    ) -> None:
        """Start a text.

        Args:
            tokenizer: of the tokens.
            stop: the strings; where several end at once, the longest counts.
            continues: see ``TextStream``.
            shown: see ``TextStream``.
        """
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, continues, shown)
        self._matcher = _Matcher(stop)
        # By number of token: what is certain of the text of each one held back; and each character held back with the
        # token in which it begins, the one that completes it, and what the text shows of it.
        self._texts: dict[int, str] = {}
        self._characters: deque[tuple[int, int, str]] = deque()
        self._n_tokens = 0
        self._character_begins = 0
        self.stop_string: str | None = None

    def put(self, token: int, may_stop: bool = True) -> list[str]:
        """Append a token; return the texts of those that are now certain to belong to the result, oldest first.

        Args:
            token: its id.
            may_stop: whether a stop string that this token completes ends the text.
        """
        if not self._stream.incomplete:
            self._character_begins = self._n_tokens
        self._texts[self._n_tokens] = ""
        text, hidden = self._stream.put(token), self._stream.hides(token)
        spelled = self._tokenizer.token(token) or "" if hidden else text
        for character in spelled:
            if hidden:
                self._characters.append((self._n_tokens, self._n_tokens, ""))
            else:
                # U+FFFD of an earlier token's bytes comes with the token that shows them to be no character.
                is_lost = character == LOST and self._character_begins < self._n_tokens
                ends = self._character_begins if is_lost else self._n_tokens
                self._characters.append((self._character_begins, ends, character))
                if not is_lost:
                    self._character_begins = self._n_tokens
            if (found := self._matcher.step(character)) and may_stop:
                self.stop_string = found
                return self._stop(len(found))
        self._n_tokens += 1
        return self._release(len(self._characters) - self._matcher.n_begun)

    def finish(self) -> list[str]:
        """Return the texts of the tokens still held back."""
        if self.stop_string is not None or not self._texts:
            return []
        self._characters.extend((self._character_begins, max(self._texts), lost) for lost in self._stream.finish())
        return self._release(len(self._characters))

    def _stop(self, length: int) -> list[str]:
        """Return the texts of the tokens before a stop string, the one in which it begins if there is text before."""
        texts = self._release(len(self._characters) - length)
        begun = next(iter(self._texts.values()))
        return [*texts, begun] if begun else texts

    def _release(self, n_characters: int) -> list[str]:
        """Return the texts of the tokens that end within the oldest so many characters held back."""
        for _ in range(n_characters):
            _, token, shown = self._characters.popleft()
            self._texts[token] += shown
        if self._characters:
            n_certain = self._characters[0][0]
        elif self._stream.incomplete:
            n_certain = self._character_begins
        else:
            n_certain = self._n_tokens
        return [self._texts.pop(token) for token in [*self._texts] if token < n_certain]
