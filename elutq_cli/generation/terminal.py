"""Text to and from a person: pieces of a reply on stdout, and the conversation at a prompt."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from elutq_cli.generation.constraint import Rule
from elutq_cli.generation.context_size import ContextOverflowError
from elutq_cli.generation.continuation import Continuation
from elutq_cli.generation.conversation import Conversation
from elutq_cli.generation.prompt_cache import PromptCache
from elutq_cli.generation.sampling import Sampler
from elutq_cli.generation.statistics import describe_context, more_room, reply_note
from elutq_cli.generation.text import GeneratedToken, TextOptions
from elutq_cli.generation.thinking import Piece, ThoughtReader
from elutq_cli.machine.keyboard import prepare_keyboard, unseen_keyboard
from elutq_cli.machine.signals import interruptible
from elutq_cli.streams import shown_line, shown_text
from elutq_cli.text_input import read_text
from elutq_formats.errors import ElutqError

DIM, NORMAL = "\x1b[2m", "\x1b[0m"
"""What a terminal is told before and after what is of less weight."""

COMMANDS = """/help         show this
/exit         leave (also Ctrl-D)
/clear        forget the conversation
/regen        take the last reply back and make another
/read FILE    put a text file before the next message
\\ at the end   go on in the next line
Ctrl-C        stop a reply; at the prompt, leave"""


def prepare_stream(stream: TextIO) -> None:
    """Make a text stream take any text: UTF-8 in files and pipes, what the locale has on a terminal."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is None:
        return
    if stream.isatty():
        reconfigure(errors="replace")
    else:
        reconfigure(encoding="utf-8", errors="replace")


def write_text(text: str, dimmed: bool = False) -> None:
    """Write a piece of a model's text to stdout at once."""
    if text:
        shown = shown_text(text) if sys.stdout.isatty() else text
        print(f"{DIM}{shown}{NORMAL}" if dimmed else shown, end="", flush=True)


def stream_text(
    generation: Continuation,
    quiet: bool = False,
    thoughts: ThoughtReader | None = None,
    cache: PromptCache | None = None,
) -> list[GeneratedToken]:
    """Write a text while it is made; Ctrl-C ends it, a second one raises KeyboardInterrupt.

    Args:
        generation: the text.
        quiet: do not write it.
        thoughts: tells its thoughts from the answer, which are dimmed then; None: it is written as it is.
        cache: keeps the prompt, where it cannot wait for the end.

    Returns:
        Its tokens.
    """
    made = []
    was_thought = False

    def write(pieces: Iterable[Piece]) -> None:
        nonlocal was_thought
        for is_thought, text in pieces if not quiet else ():
            write_text(f"\n\n{text}" if was_thought and not is_thought else text, is_thought)
            was_thought = is_thought

    with interruptible(generation.cancel):
        for token in generation:
            made.append(token)
            write([(False, token.text)] if thoughts is None else thoughts.put(token.text))
            if cache is not None:
                cache.keep_in_time(generation)
    write(() if thoughts is None else thoughts.finish())
    if not quiet:
        print(flush=True)
    return made


class Chat:
    """A conversation at a prompt. Replies go to stdout, everything else to stderr."""

    def __init__(
        self,
        conversation: Conversation,
        sampler: Sampler,
        options: TextOptions,
        cache: PromptCache | None = None,
        rule: Rule | None = None,
        shows_prompts: bool = False,
    ) -> None:
        """Prepare.

        Args:
            conversation: what was said.
            sampler: of all replies.
            options: of all replies.
            cache: where the keys and values of the first message, and all before it, are kept.
            rule: what every reply has to match, if anything.
            shows_prompts: whether what each is answered from, and its tokens, is said first.
        """
        self._conversation = conversation
        self._sampler = sampler
        self._options = options
        self._cache, self._rule = cache, rule
        self._shows_prompts = shows_prompts
        self._attached = ""

    def run(self, first: str | None = None) -> None:
        """Talk until the user leaves.

        Args:
            first: the user's first message, if there is one already.
        """
        model = self._conversation.model
        prepare_keyboard()
        _say(f"{shown_line(model.file.name)}: {describe_context(model.ctx_size, model.kv_bytes)}\n{COMMANDS}\n")
        if first is not None:
            self._reply(first)
        while (line := read_message()) is not None:
            if line.startswith("/"):
                if not self._obey(line):
                    return
            elif line.strip():
                message, self._attached = self._attached + line, ""
                self._reply(message)

    def _obey(self, line: str) -> bool:
        """Carry out a command; return whether to go on."""
        command, _, argument = line.strip().partition(" ")
        if command == "/exit":
            return False
        if command == "/clear":
            self._conversation.clear()
            self._attached = ""
            _say("[cleared]")
        elif command == "/regen":
            question = self._conversation.take_back()
            if question is None:
                _say("[there is no reply yet]")
            else:
                self._reply(question)
        elif command == "/read":
            self._read(argument.strip())
        else:
            _say(COMMANDS if command == "/help" else f"[unknown command {command}: see /help]")
        return True

    def _read(self, name: str) -> None:
        try:
            text = read_text(_path(name)) if name else ""
        except ElutqError as error:
            _say(f"[{shown_line(error)}]")
            return
        if not text:
            _say("[nothing to read: /read FILE]")
            return
        self._attached += text if text.endswith("\n") else text + "\n"
        _say(f"[{name}: {len(text)} characters go before the next message]")

    def _reply(self, message: str) -> None:
        conversation = self._conversation
        try:
            generation = conversation.ask(message, self._sampler, self._options, self._rule)
        except ContextOverflowError as error:
            _say(
                f"[the conversation needs {error.amount} tokens and the context holds {error.ctx_size}: "
                f"{more_room(conversation.model)}]"
            )
            return
        except ElutqError as error:
            _say(f"[{shown_line(error)}]")
            return
        if self._shows_prompts:
            text, tokens = conversation.prompt
            _say(f"{text}\n{tokens}\n")
        try:
            with unseen_keyboard():
                stream_text(generation, thoughts=conversation.thoughts, cache=self._cache)
        finally:
            conversation.keep(generation)
        _say(reply_note(generation, conversation.model))
        if self._cache is not None:
            self._cache.keep(generation)


def _path(name: str) -> Path:
    """Return a path that a user typed, ``~`` being a home folder; of nobody's it stays as it is."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def read_message() -> str | None:
    """Return what the user types, lines joined that end with a backslash; None at the end of input or on Ctrl-C."""
    lines: list[str] = []
    try:
        while (line := input("> " if not lines else ". ")).endswith("\\"):
            lines.append(line[:-1])
    except (EOFError, KeyboardInterrupt):
        print(flush=True)
        return None
    return "\n".join([*lines, line])


def _say(text: str) -> None:
    print(shown_text(text), file=sys.stderr, flush=True)
