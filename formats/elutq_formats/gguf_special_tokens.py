"""Special tokens and chat templates as a GGUF file's metadata name them, and which tokens end a text.

Source: llama.cpp's src/llama-vocab.cpp, for the keys, for their defaults, and for the tokens that end a generation
by their spelling, whatever the file says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from elutq_formats.gguf import ValueType
from elutq_formats.gguf_vocabulary import SENTENCEPIECE, UNIGRAM, TokenType, Vocabulary
from elutq_formats.metadata import Metadata
from elutq_formats.model_metadata import CHAT_TEMPLATE
from elutq_formats.special_tokens import BOS_NAME, END_OF_TEXT_NAMES

_KEYS = {
    BOS_NAME: ("bos_token_id",),
    "eos_token": ("eos_token_id",),
    "eot_token": ("eot_token_id",),
    "eom_token": ("eom_token_id",),
    "unk_token": ("unknown_token_id",),
    "sep_token": ("seperator_token_id", "separator_token_id"),  # the first is how GGUF spells it
    "pad_token": ("padding_token_id",),
    "cls_token": ("cls_token_id",),
    "mask_token": ("mask_token_id",),
}

_DEFAULT_IDS: Mapping[str, Mapping[str, int]] = {
    SENTENCEPIECE: {"unk_token": 0, BOS_NAME: 1, "eos_token": 2},
    UNIGRAM: {"pad_token": 0, "eos_token": 1, "unk_token": 2},
}
"""Of SentencePiece's vocabularies, for files that do not say; believed where the token is of a type that fits."""

_SPECIAL_TYPES = (TokenType.CONTROL, TokenType.UNKNOWN)

_NEEDED_KEYS = (*_KEYS[BOS_NAME], *_KEYS["eos_token"])
"""Without which the model may not say the same; llama.cpp warns of another that is wrong, and goes on without it."""

_FILL_IN_KEYS = ("fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id")
_ENDS_BY_SPELLING = """
<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT>
_<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~[
<\uff5cend\u2581of\u2581sentence\uff5c>
<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
"""
"""The last line has the ends of pieces in filling in the middle: padding, the next repository, the next file."""

_TEMPLATE_NAMES = "tokenizer.chat_templates"


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens of a vocabulary.

    Attributes:
        ids: by name: ``bos_token``, ``eos_token``, ``pad_token``, ...
        ends: every token that ends a text, that which the file calls so first.
        notes: what its user may not expect, each in one line.
    """

    ids: Mapping[str, int]
    ends: tuple[int, ...]
    notes: tuple[str, ...]


def read_special_tokens(metadata: Metadata, vocabulary: Vocabulary) -> SpecialTokens:
    """Read which tokens are special.

    Raises:
        FormatError: the id of BOS or EOS is none of the vocabulary.
    """
    notes: list[str] = []
    ids = {}
    for name, keys in _KEYS.items():
        if found := _token_ids(metadata, keys, vocabulary, notes):
            ids[name] = found[0]
    for name, at in _DEFAULT_IDS.get(vocabulary.model, {}).items():
        if name not in ids and at < len(vocabulary.types) and vocabulary.types[at] in _SPECIAL_TYPES:
            ids[name] = at
    named = [ids[name] for name in END_OF_TEXT_NAMES if name in ids]
    fill_in = _token_ids(metadata, _FILL_IN_KEYS, vocabulary, notes)
    spelled = sorted(vocabulary.ids[token] for token in _ends_by_spelling(vocabulary))
    return SpecialTokens(ids, tuple(dict.fromkeys([*named, *fill_in, *spelled])), tuple(notes))


def _token_ids(metadata: Metadata, names: Iterable[str], vocabulary: Vocabulary, notes: list[str]) -> list[int]:
    """Return the ids that the file has under these keys; of one that is left out a note is added."""
    found = []
    for name in names:
        if (key := f"tokenizer.ggml.{name}") not in metadata:
            continue
        if (at := metadata.unsigned(key)) < len(vocabulary.tokens):
            found.append(at)
            continue
        wrong = f"{key} is {at}, but the vocabulary ends at {len(vocabulary.tokens)}"
        if name in _NEEDED_KEYS:
            metadata.refuse(wrong)
        notes.append(f"{wrong}: it is left out")
    return found


def _ends_by_spelling(vocabulary: Vocabulary) -> set[str]:
    """Return the tokens that end a text by their spelling, but for two families that use one of them otherwise.

    One that merges make is a piece of ordinary text, as ``</s>`` of HTML is in Qwen2's vocabulary; llama.cpp has a
    text end there.
    """
    made = {left + right for left, right in vocabulary.merges}
    ends = {token for token in _ENDS_BY_SPELLING.split() if token in vocabulary.ids} - made
    if ends >= {"<|return|>", "<|call|>"} or ("<|flush|>" in ends and ends & {"<|call|>", "<|calls|>"}):
        ends -= {"<|end|>"}
    if "<|tool_response>" in ends:
        ends -= {"</s>"}
    return ends


def read_chat_templates(metadata: Metadata) -> tuple[str | None, dict[str, str]]:
    """Read the chat template, and those that have a name, such as ``tool_use``.

    Raises:
        FormatError: one is not text, or is announced and not there.
    """
    template = metadata.string(CHAT_TEMPLATE) if CHAT_TEMPLATE in metadata else None
    prefix = f"{CHAT_TEMPLATE}."
    named = {key.removeprefix(prefix): metadata.string(key) for key in metadata if key.startswith(prefix)}
    names = metadata.array(_TEMPLATE_NAMES, ValueType.STRING) if _TEMPLATE_NAMES in metadata else []
    for name in names:
        if name not in named and not (name == "default" and template is not None):
            metadata.refuse(f"{_TEMPLATE_NAMES} lists {name!r:.60}, but there is no {prefix}{name:.60}")
    return template or named.get("default") or None, named
