"""Make tests/data/templates/expected.json: what transformers makes of every template there and every conversation.

usage: make_template_golden.py [FOLDER]        (default: tests/data/templates beside this script's parent)

Needs transformers, which the package and its tests do not; the committed file was made with transformers 5.24.0 and
jinja2 3.1.6. The folder holds

    NAME.jinja            templates, written for these tests: together they use what those of Llama, Mistral, Qwen,
                          Gemma, Phi, SmolLM, Hermes, DeepSeek, Granite and their like use
    conversations.json    messages, and the arguments of `apply_chat_template`
    expected.json         by template and conversation: the text, or null where transformers raises

The clock stands at 2025-03-09 05:07:08 (local time), and the tokenizer has the special tokens below.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data" / "templates"
SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "[MASK]",
}


class Clock(datetime):
    """A clock that stands."""

    @classmethod
    def now(cls, tz: object = None) -> datetime:
        """Return the same time, always."""
        return datetime(2025, 3, 9, 5, 7, 8)


def render(tokenizer: PreTrainedTokenizerFast, template: str, conversation: dict[str, Any]) -> str | None:
    """Return what transformers makes of a conversation, or None where it raises."""
    arguments = {name: value for name, value in conversation.items() if name not in ("messages", "variables")}
    try:
        return tokenizer.apply_chat_template(
            conversation["messages"],
            chat_template=template,
            tokenize=False,
            **arguments,
            **conversation.get("variables", {}),
        )
    except Exception as error:
        print(f"  {type(error).__name__}: {error}"[:200].split("\n")[0])
        return None


def main() -> None:
    """Make the file."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})), **SPECIAL_TOKENS)
    conversations = json.loads((folder / "conversations.json").read_text())
    expected: dict[str, dict[str, str | None]] = {}
    with patch.object(chat_template_utils, "datetime", Clock):
        for path in sorted(folder.glob("*.jinja")):
            print(path.stem)
            template = path.read_text()
            expected[path.stem] = {name: render(tokenizer, template, entry) for name, entry in conversations.items()}
    result = {"special_tokens": SPECIAL_TOKENS, "now": Clock.now().isoformat(), "texts": expected}
    (folder / "expected.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
