"""The Python interface: three functions, which the command line uses too."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar, overload

from elutq_formats.errors import ElutqError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack  # of the type checker: no dependency

    from elutq_cli.generation import Continuation, LanguageModel, Message
    from elutq_cli.pipeline.progress import Progress
    from elutq_cli.pipeline.recipe import Recipe
    from elutq_cli.pipeline.run.quantize import Summary
    from elutq_formats.source import ModelSource

    class GenerateOptions(TypedDict, total=False):
        """Those of ``generate``, as type checkers are to know them."""

        max_tokens: int | None
        temp: float | None
        temperature: float | None
        top_k: int | None
        top_p: float | None
        min_p: float | None
        repeat_penalty: float | None
        repeat_last_n: int
        presence_penalty: float
        frequency_penalty: float
        seed: int
        stop: str | Sequence[str]
        ignore_eos: bool
        logprobs: int | None
        echo: bool
        stop_token_ids: Sequence[int]
        min_tokens: int
        logit_bias: Mapping[int, float] | Mapping[str, float] | None
        json_schema: Mapping[str, Any] | None
        grammar: str | None

    Prompt: TypeAlias = str | Sequence[int] | NDArray[np.integer[Any]] | Sequence[Message]

Value = TypeVar("Value")
PathLike = str | os.PathLike[str]


def load(
    path: PathLike,
    *,
    filename: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    ctx_size: int | None = None,
    threads: int | None = None,
    cache_type: str = "f16",
    chat_template: str | None = None,
    parallel: int | None = 1,
) -> LanguageModel:
    """Open a model file.

    Args:
        path: a file that ``quantize`` made, or ``org/name`` or ``org/name:FILE`` of one on the hub: it is downloaded.
        filename: FILE: which GGUF file of the repository, or a part of its name that no other has; None: the only one.
        revision: branch, tag or commit on the hub; None: its main branch.
        offline: use only what the hub's cache holds.
        ctx_size: tokens in each context; None: as many as the model and this machine's memory allow.
        threads: threads; None: one for each physical core this process may use, and on a machine of more than eight as
            many of them for decode as are fastest, which is measured when the first text begins.
        cache_type: keys and values as f16, or as q8 in half the memory.
        chat_template: Jinja in the place of the file's chat template; None: that one, if there is any.
        parallel: texts of a list that are made at a time, each with a context of its own; None: as many as this
            machine's memory and cores allow.

    Returns:
        The model: a context manager, used in one thread at a time.

    Raises:
        ElutqError: the file is damaged or not one of elutq, or cannot be had; or the context or the type of cache is
            impossible.
        NativeError: the C runtime refuses the file.
    """
    from elutq_cli.generation import LanguageModel
    from elutq_cli.hub import find_model

    file = find_model(os.fspath(path), filename, revision, offline)
    return LanguageModel(
        file,
        ctx_size=ctx_size,
        threads=threads,
        cache_type=cache_type,
        chat_template=chat_template,
        parallel=parallel,
    )


# How many texts come back is the prompt's doing; what the options are is said once, below.
@overload
def generate(
    model: LanguageModel,
    prompt: Prompt,
    n_predict: int | None = None,
    **options: Unpack[GenerateOptions],
) -> Continuation: ...
@overload
def generate(
    model: LanguageModel,
    prompt: list[str],
    n_predict: int | None = None,
    **options: Unpack[GenerateOptions],
) -> list[Continuation]: ...


def generate(
    model: LanguageModel,
    prompt: Prompt | list[str],
    n_predict: int | None = None,
    *,
    max_tokens: int | None = None,
    temp: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repeat_penalty: float | None = None,
    repeat_last_n: int = 64,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    logprobs: int | None = None,
    echo: bool = False,
    stop_token_ids: Sequence[int] = (),
    min_tokens: int = 0,
    logit_bias: Mapping[int, float] | Mapping[str, float] | None = None,
    json_schema: Mapping[str, Any] | None = None,
    grammar: str | None = None,
) -> Continuation | list[Continuation]:
    """Continue a text or a conversation. Nothing is computed before the result is iterated over or read.

    The same file, seed, options and instruction set give the same text, with any number of threads, when the context
    begins empty: with a model's first text, and after ``model.clear()``. What the context holds already is not computed
    again, and that can move a text, at temperature 0 too: see ``LanguageModel.clear``.

    Args:
        model: from ``load``.
        prompt: a text (the tokenizer adds its BOS), token ids (taken as they are), or messages, for a model with a chat
            template; a list of texts makes as many results, each of its own, made together as far as the model's
            ``parallel`` allows, and an empty list none.
        n_predict: tokens to generate at most; -1, or None: until the context is full.
        max_tokens: another name of ``n_predict``.
        temp: temperature; 0 takes the likeliest token. None, here and in the next four: the model's own
            (``model.file.sampling``), else that of ``SamplingOptions``: 0.8.
        temperature: another name of ``temp``.
        top_k: keep the k likeliest tokens; 0 or -1 keeps all.
        top_p: keep the likeliest tokens until their probabilities reach p; 1 keeps all.
        min_p: drop tokens less likely than min_p times the likeliest; 0 drops none.
        repeat_penalty: divides positive logits of recent tokens and multiplies negative ones; 1 is off.
        repeat_last_n: how many tokens the penalties look back; -1: all.
        presence_penalty: taken off the logit of every recent token; 0 is off.
        frequency_penalty: taken off once for each time it occurs; 0 is off.
        seed: of the draws; -1: a new one.
        stop: a string that ends the text, or several; neither they nor what follows them is handed out.
        ignore_eos: go on past the model's end-of-text tokens.
        logprobs: report each token's probability, and those of so many of the likeliest; None: do not.
        echo: the prompt's tokens come first, with their log-probabilities where ``logprobs`` asks for them.
        stop_token_ids: tokens that end the text as the model's end-of-text tokens do, under ``ignore_eos`` too.
        min_tokens: tokens before which no end-of-text token is drawn and no stop string ends the text.
        logit_bias: token ids, or their digits as in OpenAI's JSON, and what is added to their logits before anything
            else; -100 bans a token in practice.
        json_schema: the text is JSON that this schema describes; it ends when nothing can follow.
        grammar: the text matches this grammar, in llama.cpp's notation (GBNF) or in Lark's.

    Returns:
        An iterator over tokens, each with the text it completes; ``read()`` returns the whole text. Statistics are its
        attributes.

    Raises:
        ElutqError: an option is of a wrong type, out of range or given by both of its names, the prompt is empty or
            longer than the context, the model has no such token, or no chat template; the schema or grammar cannot be
            honoured, or llguidance is not installed.
    """
    from elutq_cli.generation import Continuation, Sampler, SamplingOptions, TextOptions

    limit = _one_name("n_predict", n_predict, "max_tokens", max_tokens)
    options = SamplingOptions.of(
        model.file.sampling,
        repeat_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        repeat_last_n=repeat_last_n,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        temp=_one_name("temp", temp, "temperature", temperature),
        seed=seed,
        logit_bias=logit_bias,
    )
    ending = TextOptions(
        n_predict=-1 if limit is None else limit,
        stop=stop,  # type: ignore[arg-type]  # becomes a tuple
        ignore_eos=ignore_eos,
        logprobs=logprobs,
        echo=echo,
        stop_token_ids=stop_token_ids,  # type: ignore[arg-type]  # becomes a tuple
        min_tokens=min_tokens,
        reply=isinstance(prompt, list | tuple) and any(isinstance(entry, Mapping) for entry in prompt),
    )

    form = model.compile_grammar(json_schema, grammar)

    def continuation(of: Prompt) -> Continuation:
        return Continuation(model, model.encode(of), Sampler(options), ending, form)

    if isinstance(prompt, list) and all(isinstance(entry, str) for entry in prompt):
        texts = [continuation(text) for text in prompt]
        for text in texts:
            text.companions = texts
        return texts
    return continuation(prompt)  # type: ignore[arg-type]  # it is no list of texts


def _one_name(name: str, value: Value | None, other_name: str, other: Value | None) -> Value | None:
    """Return an option that has two names.

    Raises:
        ElutqError: both are given.
    """
    if value is not None and other is not None:
        raise ElutqError(f"{name} and {other_name} are the same: give one of them")
    return other if value is None else value


def quantize(
    checkpoint: PathLike,
    output: PathLike,
    recipe: Recipe | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    gguf_file: str | None = None,
    calibration: PathLike | Sequence[PathLike] | None = None,
    device: str = "cpu",
    threads: int | None = None,
    executor: str = "threads",
    max_memory: float | None = None,
    force: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> Summary:
    """Quantize a checkpoint to a model file.

    Args:
        checkpoint: a Hugging Face checkpoint folder (safetensors, or with torch pytorch_model.bin), a GGUF file (of a
            split one the first part), or ``org/name`` on the hub: its weights are downloaded when all else has been
            checked.
        output: the file to make; it appears whole or not at all.
        recipe: bits, group size and everything else; None: the defaults of ``elutq quantize``.
        revision: branch, tag or commit on the hub; None: its main branch.
        offline: use only what the hub's cache holds.
        gguf_file: a GGUF file of the repository or folder to take instead of its checkpoint: its name or a part of it.
        calibration: UTF-8 text or JSONL files to calibrate on, one or several; None: the weights alone are fitted.
        device: where to compute and to tune: cpu, or torch's name of another device (cuda, cuda:N).
        threads: threads; None: one for each physical core this process may use.
        executor: who runs its units of work: ``threads`` of this process; or with the extra elutq[ray] ``ray`` or
            ``ray:HOST:PORT``, a Ray cluster, which makes the same file. ``threads`` are then those of each unit, and
            this process has all of its cores for what it does itself.
        max_memory: refuse to start when the run may take more memory than so many GB; None: never.
        force: replace the output if it is there.
        resume: go on after what a stopped run with the same arguments has done.
        progress: is told how far the run is; None: nobody is.

    Returns:
        Bits per weight, size, time, the error of each matrix, and after calibration the divergence of the predictions.

    Raises:
        ElutqError: the input is wrong or the disk refuses; then there is no output.
        NativeError: the threads cannot be started.
    """
    from elutq_cli.hub_sources import find_checkpoint
    from elutq_cli.options import as_type
    from elutq_cli.pipeline.compute.backend import make_backend
    from elutq_cli.pipeline.recipe import Recipe
    from elutq_cli.pipeline.run.calibration_text import CalibrationText
    from elutq_cli.pipeline.run.preparation import prepare
    from elutq_cli.pipeline.run.quantize import quantize as run_pipeline
    from elutq_formats.atomic import check_output
    from elutq_formats.open_source import open_source

    recipe = Recipe() if recipe is None else recipe
    if not isinstance(recipe, Recipe):
        raise ElutqError(f"the recipe is of type {type(recipe).__name__}: give an elutq.Recipe, such as Recipe(bits=3)")
    threads, max_memory = as_type("threads", threads, int | None), as_type("max_memory", max_memory, float | None)
    files = [calibration] if isinstance(calibration, str | os.PathLike) else calibration or []
    chosen, target = recipe.resolved(bool(files)), Path(output)
    check_output(target, force)

    texts: list[CalibrationText | None] = []  # read once, before a download: the text may be a pipe

    def read_text(source: ModelSource) -> CalibrationText | None:
        if not texts:
            paths = [Path(file) for file in files]
            texts.append(CalibrationText.read(paths, source, chosen, max_memory) if files else None)
        return texts[0]

    def check(source: ModelSource) -> None:
        prepare(source, target, chosen, read_text(source), backend, max_memory, device)

    with make_backend(device, threads, executor) as backend:
        folder = find_checkpoint(Path(checkpoint), revision, offline, check, gguf_file)
        warned = bool(texts)  # by the check
        with open_source(folder) as source:
            text = read_text(source)
            return run_pipeline(
                source, target, chosen, text, backend, force, resume, max_memory, progress, device, warned
            )
