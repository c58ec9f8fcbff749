"""A conversation: messages, the template that makes them text, and as much of the KV cache kept as possible."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from elutq_cli.generation.constraint import Rule
from elutq_cli.generation.continuation import Continuation
from elutq_cli.generation.generation import Generation
from elutq_cli.generation.language_model import LanguageModel
from elutq_cli.generation.sampling import Sampler
from elutq_cli.generation.template import ChatTemplate, Message
from elutq_cli.generation.text import TextOptions
from elutq_cli.generation.thinking import NO_BUDGET, Thinking, ThoughtReader
from elutq_formats.errors import ElutqError


@dataclass(frozen=True)
class _Seen:
    """A text that the context holds, and the tokens that stand for it there."""

    text: str
    tokens: tuple[int, ...]


class Conversation:
    """Messages to and from a model.

    A reply's tokens are kept as the model made them, where the template writes the reply as it came: encoding its text
    again could give others, and the cache from there on would be lost.

    Attributes:
        model: replies.
        messages: what was said, oldest first.
        thoughts: tells the thoughts of the reply under way from its answer; None: it has none.
    """

    def __init__(
        self,
        model: LanguageModel,
        template: ChatTemplate | None,
        system_prompt: str | None = None,
        reasoning_budget: int = NO_BUDGET,
    ) -> None:
        """Begin.

        Args:
            model: replies.
            template: makes text of messages. None: there are no roles; what is typed and what the model writes make
                one text, of which a message is the next piece.
            system_prompt: the message before the first.
            reasoning_budget: tokens of a reply's thoughts, where the template marks them.

        Raises:
            ElutqError: there is a system prompt and no template.
        """
        if template is None and system_prompt is not None:
            raise ElutqError("a system prompt needs a chat template: leave out -sys, or give --chat-template FILE")
        self.model = model
        self._template, self._budget = template, reasoning_budget
        self._system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        self.messages: list[Message] = []
        self.thoughts: ThoughtReader | None = None
        self._seen = self._pending = _Seen("", ())

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = []

    def ask(
        self, content: str, sampler: Sampler, options: TextOptions | None = None, rule: Rule | None = None
    ) -> Continuation:
        """Add a message of the user; the reply is to be iterated over and then handed to ``keep``.

        Args:
            content: the message.
            sampler: chooses the reply's tokens.
            options: where it ends.
            rule: what it has to match, if anything.

        Raises:
            ElutqError: the context cannot hold it, or the template refuses it; the conversation is left as it was.
        """
        messages = [*self.messages, {"role": "user", "content": content}]
        text = self.text(messages)
        tokens = self._encode(text)
        options = replace(options or TextOptions(), reply=self._template is not None)
        model = self.model
        thinking = Thinking.for_reply(
            self._template, text, self._budget, rule, model.tokenizer, model.native.vocab_size
        )
        if thinking is not None:
            options = replace(options, shown_token_ids=thinking.marks.special(model.tokenizer))
        generation = Continuation(model, tokens, sampler, options, thinking or rule)
        self.thoughts = None if thinking is None else thinking.reader
        self.messages = messages
        self._pending = _Seen(text, tuple(tokens))
        return generation

    @property
    def prompt(self) -> tuple[str, list[int]]:
        """What the last message was answered from: text and tokens, the whole conversation's."""
        return self._pending.text, list(self._pending.tokens)

    def keep(self, generation: Generation) -> None:
        """Add the reply, whole or as far as it came, to the conversation."""
        self.messages.append({"role": "assistant", "content": generation.text})
        # Where a stop string ended it, the tokens go on past the text: then the prompt alone is known to match.
        reply = [] if generation.stop_string_found else list(generation.tokens)
        if generation.ended_by_token:
            reply.pop()
        text = "" if generation.stop_string_found else generation.text
        self._seen = _Seen(self._pending.text + text, self._pending.tokens + tuple(reply))

    def take_back(self) -> str | None:
        """Remove the last reply and its question; return the question, or None when there is none."""
        asked = [at for at, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            return None
        question: str = self.messages[asked[-1]]["content"]
        del self.messages[asked[-1] :]
        return question

    def text(self, messages: Sequence[Message]) -> str:
        """Return the text of messages, up to where the next reply begins.

        Raises:
            ElutqError: the template refuses them.
        """
        if self._template is None:
            return "".join(message["content"] for message in messages)
        return self._template.render([*self._system, *messages])

    def _encode(self, text: str) -> list[int]:
        """Return the tokens of a text; a template writes its own BOS."""
        encode, tokenizer, seen = self.model.encode_text, self.model.tokenizer, self._seen
        if self._template is None:
            return encode(text, add_special_tokens=True)
        if seen.tokens and text.startswith(seen.text):
            rest = encode(text[len(seen.text) :])
            # A special token splits a text for the tokenizer: what is before it does not change what is after it.
            if rest and tokenizer.is_hidden(rest[0]):
                return [*seen.tokens, *rest]
        return encode(text)
