"""Every template in tests/data/templates makes the text that transformers makes of it."""

import json
from datetime import datetime

import pytest
from conftest import DATA

from elutq_cli.generation import template_environment
from elutq_cli.generation.template import ChatTemplate
from elutq_formats.errors import ElutqError

FOLDER = DATA / "templates"
CONVERSATIONS = json.loads((FOLDER / "conversations.json").read_text())
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


class Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.fromisoformat(EXPECTED["now"])


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.jinja")))
def test_a_template_makes_the_text_that_transformers_makes(name, monkeypatch):
    monkeypatch.setattr(template_environment, "datetime", Clock)
    template = ChatTemplate((FOLDER / f"{name}.jinja").read_text(), EXPECTED["special_tokens"])
    for conversation, expected in EXPECTED["texts"][name].items():
        assert render(template, CONVERSATIONS[conversation]) == expected, conversation


def render(template, conversation):
    given = {name: conversation[name] for name in ("tools", "documents") if name in conversation}
    try:
        return template.render(
            conversation["messages"],
            add_generation_prompt=conversation.get("add_generation_prompt", False),
            continue_final_message=conversation.get("continue_final_message", False),
            variables=given | conversation.get("variables", {}),
        )
    except ElutqError:
        return None


def test_there_are_forty_templates_and_most_make_a_text_of_most_conversations():
    texts = [text for made in EXPECTED["texts"].values() for text in made.values()]
    assert len(EXPECTED["texts"]) >= 40
    assert sum(text is not None for text in texts) > 0.75 * len(texts)
