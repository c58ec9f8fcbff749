"""Special tokens as a checkpoint's tokenizer names them: ``bos_token``, ``eos_token``, ``pad_token`` and others.

Source: how transformers 5 reads ``tokenizer_config.json`` and ``special_tokens_map.json``. Which of them stand around
a text is another question, and the post-processor of ``tokenizer.json`` alone answers it: transformers passes over
``add_bos_token`` and ``add_eos_token`` where there is that file.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from elutq_formats.errors import CheckpointError

STANDARD_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""A tokenizer may name more, such as ``image_token``; all names end alike."""

BOS_NAME = "bos_token"

END_OF_TEXT_NAMES = ("eos_token", "eot_token", "eom_token")
"""Names of tokens that end a text; the second and the third are llama.cpp's end of turn and end of message."""


def read_special_tokens(tokenizer_config: Mapping[str, Any], tokens_map: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the spelling of each special token by its name, or None when the tokenizer says nothing about them.

    Args:
        tokenizer_config: contents of ``tokenizer_config.json``. A name that is null or missing has no token.
        tokens_map: contents of ``special_tokens_map.json``: an older place, which has the last word unless the former
            lists the tokens that were added to the vocabulary.

    Raises:
        CheckpointError: a standard name is neither a spelling nor an added token.
    """
    named: dict[str, Any] = {}
    for place in [tokenizer_config] if "added_tokens_decoder" in tokenizer_config else [tokenizer_config, tokens_map]:
        more = place.get("extra_special_tokens")
        named |= {**place, **more} if isinstance(more, dict) else place
    if not any(name in named for name in STANDARD_NAMES):
        return None
    spellings = {}
    for name, value in named.items():
        spelling = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and name.isidentifier() and isinstance(spelling, str):
            spellings[name] = spelling
        elif name in STANDARD_NAMES and value is not None:
            raise CheckpointError(f"tokenizer_config.json: {name} must be a token, found {value!r:.60}")
    return spellings


def vocabulary_ids(tokenizer: Mapping[str, Any], spellings: Iterable[str]) -> dict[str, int]:
    """Return the ids of tokens by their spelling, of those that the vocabulary has.

    Args:
        tokenizer: contents of ``tokenizer.json``.
        spellings: of the tokens.
    """
    wanted = set(spellings)
    ids: dict[str, Any] = {}
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        ids = {spelling: vocabulary[spelling] for spelling in wanted & vocabulary.keys()}
    elif isinstance(vocabulary, list):  # Unigram: pieces with their scores; an id is a place in the list
        pieces = [piece[0] if isinstance(piece, list) and piece else None for piece in vocabulary]
        ids = {piece: at for at, piece in enumerate(pieces) if isinstance(piece, str) and piece in wanted}
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and entry["content"] in wanted:
            ids[entry["content"]] = entry.get("id")
    return {spelling: at for spelling, at in ids.items() if isinstance(at, int) and not isinstance(at, bool)}
