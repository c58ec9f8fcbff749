"""The thoughts of a reply: whether its template marks them, how long they may be, and what the client sees of them."""

from dataclasses import dataclass
from typing import Any

from elutq_cli.generation import ChatTemplate, LanguageModel
from elutq_cli.generation.constraint import Rule
from elutq_cli.generation.thinking import NO_BUDGET, Marks, Thinking, ThoughtReader, marks_of
from elutq_cli.server.errors import RequestError
from elutq_cli.server.fields import Fields
from elutq_cli.server.limits import Limits

FORMATS = ("auto", "deepseek", "none")
"""Names that llama.cpp's server gives to where thoughts go: out of the answer, but for the last one."""


@dataclass(frozen=True)
class Thoughts:
    """How a reply thinks.

    Attributes:
        marks: of thoughts.
        within: whether the reply begins with one.
        budget: tokens of them, or NO_BUDGET.
        split: whether they are told apart from the answer.
        shown: whether the client gets them, where they are.
    """

    marks: Marks
    within: bool
    budget: int
    split: bool
    shown: bool

    def rule(self, model: LanguageModel, answer: Rule | None) -> Rule:
        """Return the rule of a reply whose answer has one too, perhaps."""
        tokenizer, size = model.tokenizer, model.native.vocab_size
        return Thinking(self.marks, self.within, self.budget, answer, tokenizer, size)

    def reader(self) -> ThoughtReader | None:
        """Return what tells thoughts from the answer, if anything is to."""
        return ThoughtReader(self.marks, self.within) if self.split else None


def read_thoughts(fields: Fields, model: LanguageModel, prompt: str, limits: Limits) -> Thoughts | None:
    """Return how a reply to a prompt thinks; None: the chat template does not mark thoughts.

    Raises:
        RequestError: a field is wrong, or asks for what this model cannot do.
    """
    form, shown = fields.get("reasoning_format"), fields.flag("include_reasoning", True)
    if form not in (None, *FORMATS):
        raise RequestError(f"reasoning_format must be one of {', '.join(FORMATS)}", "reasoning_format")
    budget, marks = limits.most_thoughts(fields), marks_of(model.required_chat_template.source)
    if marks is None:
        if fields.get("thinking_budget_tokens") not in (None, NO_BUDGET):
            message = "is not supported by this model: its chat template does not mark thoughts"
            raise RequestError(f"thinking_budget_tokens {message}", "thinking_budget_tokens")
        return None
    within = marks.opened_by(prompt)
    if fields.flag("continue_final_message"):
        within = prompt.rfind(marks.opening) > prompt.rfind(marks.closing)
        if not within:
            return None
    return Thoughts(marks, within, budget, form != "none", shown)


def thinking_variables(template: ChatTemplate, on: bool, field: str) -> dict[str, Any]:
    """Return the template's variables by which a model thinks before it answers, or does not.

    Args:
        template: of the model that answers.
        on: whether it is to think.
        field: that asks for it.

    Raises:
        RequestError: its template has no such switch, and does the other thing.
    """
    source = template.source
    if "enable_thinking" in source:
        return {"enable_thinking": on}
    if on != (marks_of(source) is not None):
        raise RequestError(f"{field} is not supported by this model's chat template", field, "unsupported_parameter")
    return {}


def has_effort_switch(template: ChatTemplate) -> bool:
    """Return whether no effort at all is the switch of thinking, and not for the template itself to understand."""
    return "enable_thinking" in template.source or "reasoning_effort" not in template.source


def may_think(template: ChatTemplate) -> bool:
    """Return whether a template knows of thoughts."""
    source = template.source
    return "enable_thinking" in source or marks_of(source) is not None
