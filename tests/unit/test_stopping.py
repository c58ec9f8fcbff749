"""Stop strings: where a text ends, what is held back, and whose text is whose."""

import random

import pytest

from elutq_cli.generation.stopping import StoppableText

SPECIAL = "<|im_end|>"


class Pieces:
    """A tokenizer whose tokens are indexes of pieces, text or bytes; SPECIAL is a special token."""

    on_invalid = "replace"

    def __init__(self, *pieces):
        self.pieces = pieces

    def token(self, token):
        return str(self.pieces[token])

    def is_hidden(self, token):
        return self.pieces[token] == SPECIAL

    def token_bytes(self, token, first=False):
        piece = self.pieces[token]
        return piece if isinstance(piece, bytes) else piece.encode()


def texts_of(pieces, stop, n_early=0):
    """Returns the texts handed out after each token and in the end, and whether a stop string was found."""
    stream, made = StoppableText(Pieces(*pieces), stop), []
    for token in range(len(pieces)):
        made.append(stream.put(token, token >= n_early))
        if stream.stop_string is not None:
            break
    return [*made, stream.finish()], stream.stop_string is not None


def joined(made):
    return "".join(text for texts in made for text in texts)


@pytest.mark.parametrize(
    ("pieces", "stop", "shown", "stopped"),
    [
        (["ab", "c", "d"], ["bc"], "a", True),
        (["a", "b", "x", "c"], ["bc"], "abxc", False),
        (["aaab"], ["ab", "aa"], "", True),
        (["x", "aa", "ab"], ["aab"], "xa", True),
        (["end"], ["", "nd"], "e", True),
        (["end"], [""], "end", False),
        (["é", "日本"], ["日"], "é", True),
        (["a", b"\xe6\x97", b"\xa5", "b"], ["日b"], "a", True),
        (["xabcabd"], ["abcabx", "cabd"], "xab", True),
        (["xbcd"], ["cd", "bcd", "d"], "x", True),
        (["x", "b", "c"], ["bcde", "c"], "xb", True),
    ],
)
def test_a_stop_string_ends_the_text_before_it(pieces, stop, shown, stopped):
    made, found = texts_of(pieces, stop)
    assert (joined(made), found) == (shown, stopped)
    one_by_one = [character for piece in pieces for character in (piece if isinstance(piece, str) else [piece])]
    assert (joined(texts_of(one_by_one, stop)[0]), found) == (shown, stopped)


@pytest.mark.parametrize(
    ("pieces", "stop", "shown"),
    [
        (["Hi", SPECIAL, "no"], [SPECIAL], "Hi"),
        (["Hi", SPECIAL, "\n", "no"], [SPECIAL + "\n"], "Hi"),
        (["Hi", "!\n", SPECIAL, "no"], ["\n" + SPECIAL], "Hi!"),
        (["Hi", SPECIAL, SPECIAL, "no"], [SPECIAL * 2], "Hi"),
        (["Hi", SPECIAL, "no"], ["im_end"], "Hi"),
        (["Hi", *SPECIAL, "no"], [SPECIAL], "Hi"),
        (["Hi", SPECIAL, "yes", SPECIAL, "\n"], [SPECIAL + "\n"], "Hiyes"),
        (["Hi", SPECIAL, "yes"], [SPECIAL + "\n", "Hiyes"], "Hiyes"),
    ],
)
def test_stop_strings_match_the_spelling_of_special_tokens_which_is_not_shown(pieces, stop, shown):
    assert joined(texts_of(pieces, stop)[0]) == shown


def test_every_token_has_its_own_text_whatever_was_held_back():
    pieces = ["a", "b", "c", b"x\xe6", b"\x97", b"\xa5y", SPECIAL, "a", "b"]
    texts = ["a", "b", "c", "x", "", "日y", "", "a", "b"]
    for stop in ([], ["abd"], ["c" + "x日z", "y" + SPECIAL + "b"]):
        made, stopped = texts_of(pieces, stop)
        assert [text for group in made for text in group] == texts
        assert not stopped
    assert texts_of(pieces[:5], [])[0] == [["a"], ["b"], ["c"], [], [], ["x", "\N{REPLACEMENT CHARACTER}"]]


def test_a_token_comes_once_its_text_is_certain_and_not_before():
    assert texts_of(["x", "a", "b", "z"], ["abc"])[0] == [["x"], [], [], ["a", "b", "z"], []]
    assert texts_of(["x", "a", "b"], ["abc"])[0] == [["x"], [], [], ["a", "b"]]


def test_tokens_of_a_stop_string_do_not_come_but_the_one_in_which_it_begins():
    assert texts_of(["x", "ya", "b", "c!"], ["abc"])[0] == [["x"], [], [], ["y"], []]
    assert texts_of(["x", "a", "b", "c!"], ["abc"])[0] == [["x"], [], [], [], []]


def test_a_stop_string_may_begin_before_it_may_end_the_text():
    assert texts_of(["a", "b", "c"], ["ab"], n_early=2) == ([[], [], ["a", "b", "c"], []], False)
    assert joined(texts_of(["a", "b", "c"], ["abc"], n_early=2)[0]) == ""
    assert joined(texts_of(["a", "b", "a", "b"], ["ab"], n_early=2)[0]) == "ab"


def test_any_cut_into_tokens_ends_the_text_where_the_first_stop_string_ends():
    source = random.Random(3)
    for _ in range(500):
        text = "".join(source.choices("ab" + "c", k=30))
        stop = ["".join(source.choices("abc", k=source.randrange(1, 6))) for _ in range(3)]
        ends = [(text.index(string) + len(string), -len(string)) for string in stop if string in text]
        end, length = min(ends, default=(len(text), 0))
        cuts = sorted(source.sample(range(1, 30), 9))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, 30], strict=True)]
        made, stopped = texts_of(pieces, stop)
        assert (joined(made), stopped) == (text[: end + length], bool(ends))


def test_work_does_not_grow_with_the_number_of_stop_strings_or_their_length():
    steps = 0

    class Counted(dict):
        def get(self, *arguments):
            nonlocal steps
            steps += 1
            return super().get(*arguments)

        def __contains__(self, key):
            nonlocal steps
            steps += 1
            return super().__contains__(key)

    stream = StoppableText(Pieces("a" * 1000 + "b"), ["a" * n + "c" for n in range(1, 300)])
    stream._matcher._children = [Counted(children) for children in stream._matcher._children]
    stream.put(0)
    assert steps < 4 * 1001
