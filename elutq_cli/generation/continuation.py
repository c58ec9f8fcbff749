"""A text that runs the model when it is asked for its next token: what a program or a terminal iterates over."""

from collections.abc import Iterator, Sequence

from elutq_cli.generation.constraint import Rule
from elutq_cli.generation.generation import Generation
from elutq_cli.generation.language_model import LanguageModel
from elutq_cli.generation.sampling import Sampler
from elutq_cli.generation.scheduler import Scheduler
from elutq_cli.generation.text import GeneratedToken, TextOptions
from elutq_native import ClosedError, ForkedError


class Continuation(Generation, Iterator[GeneratedToken]):
    """A text in the making: iterate over it, or ``read`` it to its end.

    Tokens come one by one, each once its text is certain; those that end the text do not come. Of several over one
    model the one that is asked has a slot, and the other ones have those of its ``companions``.

    Attributes:
        companions: texts that are made beside this one where there are slots for them.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: Sequence[int],
        sampler: Sampler,
        options: TextOptions | None = None,
        rule: Rule | None = None,
    ) -> None:
        """Prepare; nothing is computed before the first token is asked for.

        Args:
            model: continues the prompt.
            prompt: one or more token ids: the whole context, from its first token.
            sampler: chooses the tokens.
            options: where the text ends; None: at the model's end-of-text token, or the context's end.
            rule: what the text has to match, if anything.

        Raises:
            ElutqError: the prompt is empty or longer than the context, or the options name a token that is not there.
        """
        options = options or TextOptions()
        model.check_text(prompt, sampler.options, options)
        super().__init__(list(prompt), sampler, options, model.tokenizer, model.ctx_size, rule)
        self._model = model
        self._scheduler: Scheduler | None = None
        self.companions: Sequence[Continuation] = ()

    def __next__(self) -> GeneratedToken:
        """Return the next token."""
        while (token := self.take()) is None:
            if self.cancelled:
                self.end_cancelled()
            if isinstance(self.error, ClosedError):
                self._model.native.check_open()  # the engine was closed with it: the model is what the caller knows
            if isinstance(self.error, ForkedError):  # again in the caller's words
                line = "this process was forked and has not the model's threads; call model.start() in it"
                raise ForkedError(self.error.status, line, bad_input=False) from self.error
            if self.error is not None:
                raise self.error
            if self.ended:
                raise StopIteration
            self._advance()
        return token

    def read(self) -> str:
        """Generate to the end and return the whole text."""
        for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        """End the text at once, in the middle of the prompt too; nothing happens once it is over. Any thread may."""
        super().cancel()
        if self._scheduler is not None:
            self._scheduler.interrupt()

    def _advance(self) -> None:
        """Evaluate what is wanted next."""
        scheduler = self._scheduler = self._model.scheduler
        going = scheduler.generations
        if self not in going:
            for other in going:  # nobody asks for it now, and perhaps nobody will
                scheduler.withdraw(other)
            scheduler.submit(self)
            going = [self]
        for other in self.companions:
            if len(going) == len(scheduler.contexts):
                break
            if not (other.ended or other.cancelled or other in going):
                scheduler.submit(other)
                going.append(other)
                other._scheduler = scheduler
        scheduler.step()
