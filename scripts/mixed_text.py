"""Text of every kind that a tokenizer may meet, made from a seed: what tokenizers are compared on.

It has no text of anybody's: words, code and sentences are drawn at random.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence


def _words(text: str) -> list[str]:
    return text.split()


WORDS = _words(
    "the of and a to in he was that it his her with as had for she not at but be on they have him is said me which "
    "by so this all from no were if would or when what there been one could very an who them my you we your about "
    "house river morning window letter garden stranger question answer weather mountain's can't don't I'm we've "
    "they'll you're she'd IT'S Don'T café naïve Größe façade Zürich señor œuvre Ærø ﬁne x² H₂O ½ №5 3rd"
)
SIGNS = [", ", ". ", " - ", " — ", "... ", "! ", "? ", ": ", ' "', '" ', " (", ") ", "'", "’s ", "\n", "\n\n", "  "]
CODE_WORDS = _words("self index value buffer n_rows kMaxSize fooBar HTTPServer x1 i32 _private __init__ größe")
KEYWORDS = _words("return for if while def class struct const static int float import lambda async await yield")
OPERATORS = _words("= == != <= >= += -> => :: ++ -- && || ! & | ^ ~ << >> ... ?. ?? // /* */ # @ $ % \\ ` </ /> </s>")
ARABIC = _words("السلام عليكم هذا كتاب جديد والمدينة كبيرة جدا في العالم العربي ١٢٣٤ ٪٥٠ وَقَالَ لَهُ")
OTHERS = _words(
    "Привет мир שלום עולם नमस्ते दुनिया สวัสดีชาวโลก こんにちは 世界 カタカナ 안녕하세요 세계 გამარჯობა Ελληνικά հայերեն "
    "ไทยไม่มีช่องว่าง ভাষা தமிழ் မြန်မာ ខ្មែរ አማርኛ ꀀꀁ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈𐌰 ǅ ǈ ﷺ ⅷ ㈱ ㎏"
)
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "❤️", "☃", "1️⃣", "🧑🏿‍🚀", "🫠", "©️", "\U0001fae8", "✂︎"]
CONTROLS = [*map(chr, range(0x20)), "\x7f", "\x85", "\xa0", "\xad", *"\u200b\u200d\u2028\u2029\u202e\u3000\ufeff\ufffd"]
COMBINING = ["e\u0301", "n\u0303", "A\u030a", "\u1100\u1161", "o\u0302\u0323", "\u2126", "\u212b", "ế", "\u0344", "가"]
SPELLED = [
    "<s>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<0x0A>",
    "<0xE4>",
    "[PAD9]",
    "<|",
    "|>",
]


def _sentence(draw: random.Random) -> str:
    return "".join(draw.choice(WORDS) + (draw.choice(SIGNS) if draw.random() < 0.2 else " ") for _ in range(12))


def _number(draw: random.Random) -> str:
    digits = str(draw.randrange(10 ** draw.randint(1, 12)))
    return draw.choice(
        [digits, f"{int(digits):,}", f"-{digits}.{digits[:2]}", f"0x{int(digits):X}", f"{digits}e-{digits[0]}"]
    )


def _code(draw: random.Random) -> str:
    names = CODE_WORDS + KEYWORDS
    line = " ".join(draw.choice([draw.choice(names), draw.choice(OPERATORS), _number(draw)]) for _ in range(6))
    indent = draw.choice([" " * (4 * draw.randint(0, 4)), "\t" * draw.randint(0, 3), " " * draw.randint(0, 9)])
    return indent + line + draw.choice(["\n", ";\n", " {\n", "();\n\n", "\r\n", ":\n\n\n", "  \n"])


def _chinese(draw: random.Random) -> str:
    words = [
        draw.choice(["的", "是", "我们", "中国", "今天", "模型", "量化"])
        if draw.random() < 0.5
        else "".join(chr(draw.randrange(0x4E00, 0x9FA6)) for _ in range(draw.randint(1, 3)))
        for _ in range(12)
    ]
    return (
        draw.choice(["", "，", "、"]).join(words) + draw.choice("。！？…") + draw.choice(["", " ", "\n", _number(draw)])
    )


def _spaces(draw: random.Random) -> str:
    return draw.choice([" ", "\t", "\n", "\r\n", "\u3000", " \n", "\xa0"]) * draw.randint(1, 40) + draw.choice(
        [*WORDS, "7"]
    )


def _any_character(draw: random.Random) -> str:
    """Return characters that every table of Unicode knows, whatever its version, composed."""
    drawn = (chr(draw.randrange(draw.choice([0x80, 0x800, 0x10000, 0x20000]))) for _ in range(24))
    known = (character for character in drawn if unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Cs", "Co"))
    return unicodedata.normalize("NFC", "".join(known))


def _of(pieces: Sequence[str], between: str) -> Callable[[random.Random], str]:
    return lambda draw: between.join(draw.choice(pieces) for _ in range(8)) + draw.choice(["", " ", "\n"])


def kinds(special_tokens: Sequence[str]) -> dict[str, Callable[[random.Random], str]]:
    """Return what makes a short text, by kind; ``special_tokens`` are spelled in some of them."""
    spelled = [*SPELLED, *special_tokens]
    return {
        "English": _sentence,
        "numbers": lambda draw: " ".join(_number(draw) for _ in range(6)) + "\n",
        "code": _code,
        "Chinese": _chinese,
        "Arabic": _of(ARABIC, " "),
        "other scripts": _of(OTHERS, " "),
        "emoji": _of(EMOJI, ""),
        "control characters": lambda draw: draw.choice(WORDS).join(draw.choice(CONTROLS) for _ in range(6)),
        "spaces": _spaces,
        "any character": _any_character,
        "not composed": _of(COMBINING, ""),
        "special tokens": lambda draw: draw.choice(["", " ", "a", "\n"]).join(draw.choice(spelled) for _ in range(5)),
    }


def mixed_text(n_bytes: int, special_tokens: Sequence[str], seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield texts of about 2 kB with their kinds, as many of each, and of all kinds together, until there are enough.

    Args:
        n_bytes: how much text there is to be, in UTF-8.
        special_tokens: of the tokenizer.
        seed: the texts are the same for the same seed.
    """
    draw = random.Random(seed)
    makers = kinds(special_tokens)
    while n_bytes > 0:
        for kind in [*makers, "all"]:
            text = ""
            while len(text.encode()) < 2000:
                text += makers[draw.choice(list(makers)) if kind == "all" else kind](draw)
            yield kind, text
            n_bytes -= len(text.encode())
