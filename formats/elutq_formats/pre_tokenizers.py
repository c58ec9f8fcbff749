r"""How byte-level BPE cuts a text into words before merging: the rule behind each name of ``tokenizer.ggml.pre``.

A GGUF file names its pre-tokenizer and does not describe it. The names, the regular expressions and what else hangs
on a name are facts about those tokenizers.

Source: llama.cpp's src/llama-vocab.cpp, which quotes the expressions of the ``tokenizer.json`` that each name was made
of. Where it writes one otherwise, because its own engine lacks something (``(?i:...)``, a class of letters by case),
the original stands here, and so does the normalizer (NFC), which llama.cpp has not: the tokens are those that the
model was trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from elutq_formats.errors import UnsupportedModelError

_EACH_DIGIT = {"type": "Digits", "individual_digits": True}

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD_AFTER_SIGN = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD_AFTER_SIGN}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACE}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD_AFTER_SIGN}|\p{{N}}|{_SIGNS}|{_SPACE}"
_MINICPM5 = rf"{_CONTRACTIONS}|{_WORD_AFTER_SIGN}|\p{{N}}+|{_SIGNS}|{_SPACE}"
_SEED_CODER = rf"{_CONTRACTIONS}|{_WORD_AFTER_SIGN}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}"

_HEAD, _TAIL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_HEAD}*{_TAIL}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_HEAD}+{_TAIL}*"
_SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = rf"{'|'.join(_CASED)}|\p{{N}}|{_SIGNS_AND_SLASHES}|{_SPACE}"
_GPT4O = rf"{'|'.join(part + _CONTRACTIONS + '?' for part in _CASED)}|\p{{N}}{{1,3}}|{_SIGNS_AND_SLASHES}|{_SPACE}"

_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""Of DeepSeek LLM, letter for letter."""

_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _CJK,
    _EACH_DIGIT,
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _EACH_DIGIT)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACE}",
)
_VIKING = (" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+", _EACH_DIGIT)
_FALLBACK = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

UNNAMED = "default"
"""What a file has that names none; llama.cpp's rule for it, so that a file gives the same tokens there."""


@dataclass(frozen=True)
class PreTokenizer:
    """What a name of ``tokenizer.ggml.pre`` stands for.

    Attributes:
        steps: in their order: an expression, whose matches become pieces of their own and whatever is between them
            too, or a step as ``tokenizer.json`` spells it.
        composes: characters are composed first (NFC).
        ignore_merges: a word that is a token is taken whole, whether merges make it or not.
        adds_bos: a text begins with BOS, unless the file says something else.
    """

    steps: tuple[str | dict[str, Any], ...]
    composes: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False

    def normalizer(self) -> dict[str, Any] | None:
        """Return what ``tokenizer.json`` calls by this name."""
        return {"type": "NFC"} if self.composes else None

    def to_json(self) -> dict[str, Any]:
        """Return what ``tokenizer.json`` calls the pre-tokenizer."""
        own_regex = self.steps[-1] == _GPT2  # the one that byte-level pre-tokenizers bring along
        steps = [_split(step) for step in (self.steps[:-1] if own_regex else self.steps)]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own_regex}
        return {"type": "Sequence", "pretokenizers": [*steps, byte_level]} if steps else byte_level


def _split(step: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(step, dict):
        return step
    return {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}


def _names(names: str, rule: PreTokenizer) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names.split(), rule)


_NAMED = MappingProxyType(
    _names(UNNAMED, PreTokenizer(_FALLBACK))
    | _names("gpt-2 phi-2 mpt olmo mellum trillion gigachat a.x-4.0 exaone4", PreTokenizer((_GPT2,)))
    | _names("smollm starcoder refact codeshell minerva-7b", PreTokenizer((_EACH_DIGIT, _GPT2)))
    | _names("command-r", PreTokenizer((_EACH_DIGIT, _GPT2), composes=True))
    | _names(
        "llama-bpe llama3 llama-v3 falcon3 pixtral midm-2.0 lfm2",
        PreTokenizer((_LLAMA3,), ignore_merges=True, adds_bos=True),
    )
    | _names("smaug-bpe dbrx glm4 chatglm-bpe", PreTokenizer((_LLAMA3,)))
    | _names("qwen2 deepseek-r1-qwen megrez f2llmv2 stablelm2", PreTokenizer((_QWEN2,), composes=True))
    | _names("kormo", PreTokenizer((_QWEN2,)))
    | _names("tekken", PreTokenizer((_TEKKEN,), ignore_merges=True, adds_bos=True))
    | _names("gpt-4o llama4", PreTokenizer((_GPT4O,)))
    | _names("seed-coder", PreTokenizer((_SEED_CODER,)))
    | _names("minicpm5", PreTokenizer((r"\p{N}{1,3}", _MINICPM5), ignore_merges=True))
    | _names("deepseek-llm", PreTokenizer(_DEEPSEEK_LLM))
    | _names("deepseek-coder", PreTokenizer(_DEEPSEEK_CODER))
    | _names("deepseek-v3", PreTokenizer(_DEEPSEEK_V3))
    | _names("viking", PreTokenizer(_VIKING))
)


NAMES = tuple(sorted(_NAMED))


def find_pre_tokenizer(name: str) -> PreTokenizer:
    """Return the pre-tokenizer of this name.

    Raises:
        UnsupportedModelError: nothing is known of it.
    """
    if name not in _NAMED:
        raise UnsupportedModelError(
            f"tokenizer.ggml.pre names an unknown pre-tokenizer, {name!r:.60}: known are {', '.join(NAMES)}"
        )
    return _NAMED[name]


def name_of_rule(settings: Mapping[str, Any]) -> str | None:
    """Return the name of the rule by which a ``tokenizer.json`` cuts texts; None: it has none."""
    ignores = bool(settings["model"].get("ignore_merges"))
    wanted = (_steps(settings.get("pre_tokenizer")), settings.get("normalizer"), ignores)
    for name, rule in _NAMED.items():
        if (_steps(rule.to_json()), rule.normalizer(), rule.ignore_merges) == wanted:
            return name
    return None


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps of a pre-tokenizer, without what changes only the places of tokens in the text."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
