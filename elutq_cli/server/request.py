"""What a client asks for: OpenAI's request bodies, and what other servers take beside."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from elutq_cli.generation import Generation, LanguageModel, Sampler, SamplingOptions, TextOptions
from elutq_cli.generation.constraint import Rule
from elutq_cli.generation.context import Reuse
from elutq_cli.generation.context_size import ContextOverflowError
from elutq_cli.generation.sampling import NEW_SEED
from elutq_cli.options import OptionError
from elutq_cli.server import unsupported
from elutq_cli.server.errors import RequestError
from elutq_cli.server.fields import Fields
from elutq_cli.server.limits import NO_LIMIT, Limits
from elutq_cli.server.messages import render
from elutq_cli.server.reply import Reply
from elutq_cli.server.structure import read_structure
from elutq_cli.server.thinking import read_thoughts
from elutq_cli.server.tools import read_tools
from elutq_formats.errors import ElutqError
from elutq_formats.sampling_defaults import ALL_TOKENS

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for /v1/completions; a reply in a chat goes on to its end."""

MOST_LOGPROBS = 20
MOST_TEXTS = 1024
"""Of one request: so many prompts, and candidates of each."""

MOST_STOP_TOKENS = 1024
LARGEST_BIAS = 100.0
SEEDS = 1 << 64

WHAT_A_PROMPT_IS = "must be one text, the token ids of one, or a list of these"

SAMPLING_NUMBERS = {
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "top_p": "top_p",
    "min_p": "min_p",
    "temperature": "temp",
}
"""Fields, and the options that they are."""

FIELDS = {option: name for name, option in SAMPLING_NUMBERS.items()} | {"n_predict": "max_tokens"}
"""Options, and the fields that they come as, where these have other names."""


@dataclass(frozen=True)
class TextRequest:
    """What to make, and how to send it.

    Attributes:
        generations: the texts, all candidates of the first prompt first.
        n_candidates: texts of each prompt.
        n_choices: how many of these the client gets, the likeliest.
        scored: whether the client gets log-probabilities.
        reuse: what they may take over of what slots hold.
        begin_reply: returns what tells the parts of a reply apart, at its start.
        stream: send the text while it is made.
        include_usage: end a stream with the number of tokens.
    """

    generations: list[Generation]
    n_candidates: int
    n_choices: int
    scored: bool
    reuse: Reuse
    begin_reply: Callable[[], Reply]
    stream: bool
    include_usage: bool


def read_chat(body: object, model: LanguageModel, limits: Limits) -> TextRequest:
    """Read the body of /v1/chat/completions.

    Args:
        body: parsed.
        model: answers.
        limits: of any text on this server.

    Raises:
        RequestError: it is wrong.
        ContextOverflowError: the prompt does not fit.
        ElutqError: the chat template refuses the messages, or an option is out of range.
    """
    fields = Fields(body)
    fields.refuse(unsupported.CHAT)
    top = fields.integer("top_logprobs", 0, MOST_LOGPROBS) or 0
    logprobs = top if fields.flag("logprobs") else None
    if top and logprobs is None:
        raise RequestError("top_logprobs needs logprobs", "top_logprobs")
    structure = read_structure(fields, model)
    tools = read_tools(fields, model, structure)
    prompt = render(fields, model.required_chat_template, tools.described if tools else None)
    thoughts = read_thoughts(fields, model, prompt, limits)
    tokens = model.encode_text(prompt)
    n_choices = fields.integer("n", 1, MOST_TEXTS) or 1
    options = _options(fields, model, limits.most_tokens(fields, NO_LIMIT), logprobs)
    options = replace(options, reply=not fields.flag("continue_final_message"))
    marks = [] if tools is None else [*tools.notation.marks(model.tokenizer).values()]
    marks += [] if thoughts is None else thoughts.marks.special(model.tokenizer)
    options = replace(options, shown_token_ids=tuple(marks))
    rule: Rule | None = structure if tools is None else tools.grammar
    rule = rule if thoughts is None else thoughts.rule(model, rule)
    wanted = _request(fields, model, [tokens], options, n_choices, n_choices, "messages", rule)
    return replace(wanted, begin_reply=partial(Reply, tools, thoughts))


def read_completion(body: object, model: LanguageModel, limits: Limits) -> TextRequest:
    """Read the body of /v1/completions; arguments and errors as those of ``read_chat``."""
    fields = Fields(body)
    fields.refuse(unsupported.COMPLETION)
    prompts = prompts_of(fields.get("prompt"))
    n_choices = fields.integer("n", 1, MOST_TEXTS) or 1
    n_candidates = fields.integer("best_of", 1, MOST_TEXTS) or n_choices
    if n_candidates < n_choices:
        raise RequestError(f"best_of is {n_candidates}: it must be at least n, which is {n_choices}", "best_of")
    if len(prompts) * n_candidates > MOST_TEXTS:
        raise RequestError(f"a request may have at most {MOST_TEXTS} texts", "prompt" if len(prompts) > 1 else "n")
    logprobs = fields.integer("logprobs", 0, MOST_LOGPROBS)
    options = _options(fields, model, limits.most_tokens(fields, DEFAULT_COMPLETION_TOKENS), logprobs)
    options = replace(options, echo=fields.flag("echo"))
    tokens = [encode_prompt(prompt, model, "prompt") for prompt in prompts]
    grammar = read_structure(fields, model)
    return _request(fields, model, tokens, options, n_candidates, n_choices, "prompt", grammar)


def prompts_of(value: object) -> Sequence[object]:
    """Return the prompts of a body: a text, the token ids of one, or a list of these."""
    if isinstance(value, list) and value and all(isinstance(entry, str | list) for entry in value):
        return value
    return [value]


def encode_prompt(prompt: object, model: LanguageModel, name: str) -> list[int]:
    """Return the tokens of a text, or token ids as they are.

    Args:
        prompt: one of ``prompts_of``.
        model: whose tokens they are.
        name: of the field.

    Raises:
        RequestError: it is neither.
        ContextOverflowError: it does not fit.
    """
    if isinstance(prompt, str):
        return model.encode(prompt)
    if not isinstance(prompt, list):
        raise RequestError(f"{name} {WHAT_A_PROMPT_IS}", name)
    if len(prompt) > model.ctx_size:
        raise ContextOverflowError(len(prompt), model.ctx_size, model.native.context_length)
    if not all(type(entry) is int for entry in prompt):
        raise RequestError(f"{name} {WHAT_A_PROMPT_IS}", name)
    check_tokens(prompt, model, name)
    return prompt


def _options(fields: Fields, model: LanguageModel, n_predict: int, logprobs: int | None) -> TextOptions:
    """Read where a text ends, and what is reported of it, as far as both kinds of request share it."""
    with _naming(fields):
        return TextOptions(
            n_predict,
            fields.strings("stop"),
            ignore_eos=fields.flag("ignore_eos"),
            logprobs=logprobs,
            stop_token_ids=_stop_tokens(fields, model),
            min_tokens=fields.integer("min_tokens", 0, 1 << 31) or 0,
        )


@contextmanager
def _naming(fields: Fields) -> Iterator[None]:
    """Have an option that is out of range named as the field that it came as.

    Raises:
        RequestError: in the place of an OptionError.
    """
    try:
        yield
    except OptionError as error:
        name = fields.given_name(FIELDS.get(error.option, error.option))
        raise RequestError(f"{name} {error.problem}", name) from error


def _request(
    fields: Fields,
    model: LanguageModel,
    prompts: Sequence[list[int]],
    options: TextOptions,
    n_candidates: int,
    n_choices: int,
    source: str,
    rule: Rule | None,
) -> TextRequest:
    """Read what both kinds of request share, and make their texts."""
    if not all(prompts):
        raise RequestError("the prompt has no tokens", source)
    if too_long := [len(tokens) for tokens in prompts if len(tokens) > model.ctx_size]:
        raise ContextOverflowError(too_long[0], model.ctx_size, model.native.context_length)
    stream = fields.flag("stream")
    if stream and n_candidates > n_choices:
        raise RequestError("the best of several texts cannot be sent before all are made: leave out stream", "best_of")
    seed = fields.integer("seed", -(1 << 63), (1 << 64) - 1)
    seed = NEW_SEED if seed is None or seed == NEW_SEED else seed % SEEDS
    scored = options.logprobs is not None
    if n_candidates > n_choices and not scored:
        options = replace(options, logprobs=0)  # by which the best are found

    def text(tokens: list[int], candidate: int) -> Generation:
        own = seed if seed == NEW_SEED else (seed + candidate) % SEEDS
        return Generation(tokens, Sampler(sampling(own)), options, model.tokenizer, model.ctx_size, rule)

    sampling = _sampling(fields, model)
    # The same request with a seed is to give the same text again.
    reuse = Reuse.ALL if seed == NEW_SEED else Reuse.EXACT
    if not fields.flag("cache_prompt", True):
        reuse = Reuse.NOTHING
    return TextRequest(
        [text(tokens, candidate) for tokens in prompts for candidate in range(n_candidates)],
        n_candidates,
        n_choices,
        scored,
        reuse,
        Reply,
        stream=stream,
        include_usage=Fields(fields.mapping("stream_options")).flag("include_usage"),
    )


def _sampling(fields: Fields, model: LanguageModel) -> Callable[[int], SamplingOptions]:
    """Return what makes a text's options of its seed."""
    options: dict[str, Any] = {option: fields.number(name) for name, option in SAMPLING_NUMBERS.items()}
    options["top_k"] = fields.integer("top_k", ALL_TOKENS, 1 << 31)
    options["repeat_last_n"] = fields.integer("repeat_last_n", -1, 1 << 31)
    options["logit_bias"] = _logit_bias(fields, model)

    def of_seed(seed: int) -> SamplingOptions:
        with _naming(fields):
            return SamplingOptions.of(model.file.sampling, seed=seed, **options)

    return of_seed


def _logit_bias(fields: Fields, model: LanguageModel) -> tuple[tuple[int, float], ...]:
    """Return tokens and what is added to their logits; the names in OpenAI's object are tokens' ids."""
    name = "logit_bias"
    biases = fields.mapping(name)
    if wrong := [key for key in biases if not re.fullmatch("[0-9]{1,10}", key)]:
        raise RequestError(f"{name} has {wrong[0]!r:.40}, which is no token's id", name)
    for bias in biases.values():
        if type(bias) not in (int, float) or not -LARGEST_BIAS <= bias <= LARGEST_BIAS:
            raise RequestError(f"every bias in {name} must be a number from -100 to 100", name)
    check_tokens([int(key) for key in biases], model, name)
    return tuple((int(key), float(bias)) for key, bias in biases.items())


def _stop_tokens(fields: Fields, model: LanguageModel) -> tuple[int, ...]:
    name = "stop_token_ids"
    tokens = fields.get(name) or []
    if (
        not isinstance(tokens, list)
        or len(tokens) > MOST_STOP_TOKENS
        or not all(type(entry) is int for entry in tokens)
    ):
        raise RequestError(f"{name} must be a list of at most {MOST_STOP_TOKENS} token ids", name)
    check_tokens(tokens, model, name)
    return tuple(tokens)


def check_tokens(tokens: list[int], model: LanguageModel, name: str) -> None:
    """Refuse token ids that the model has not.

    Raises:
        RequestError: one is such.
    """
    try:
        model.check_tokens(tokens, name)
    except ElutqError as error:
        raise RequestError(str(error), name) from error
