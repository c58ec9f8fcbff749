"""`elutq bench`: how fast a machine runs a model, and how close to what its memory allows."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elutq_cli.commands.options import CacheType, one_of
from elutq_cli.commands.runtime import prepare_runtime
from elutq_cli.model_path import refuse_folder
from elutq_cli.streams import printable
from elutq_formats.errors import ElutqError

if TYPE_CHECKING:
    from elutq_cli.benchmark.measure import Test
    from elutq_cli.pipeline.layout import Layout


def _shapes(incomplete: str) -> list[str]:
    from elutq_cli.shapes import SHAPES

    return one_of(*SHAPES)(incomplete)


def bench_command(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help="Model file of elutq.")] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE",
            help="Instead of a file: random weights of a shape, such as llama2-7b.",
            autocompletion=_shapes,
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            help="Bits per weight of --synthetic; default: 2.", min=1, max=4, autocompletion=one_of(1, 2, 3, 4)
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Group size of --synthetic; default: 64.", autocompletion=one_of(32, 64, 128, 256)),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Kind of blocks of --synthetic: free8, the default, free16, even16, even8, even16c or even8c.",
            autocompletion=one_of("free8", "free16", "even16", "even8", "even16c", "even8c"),
        ),
    ] = None,
    n_prompt: Annotated[str, typer.Option("-p", "--n-prompt", help="Prompt sizes, as 64,512; 0: none.")] = "512",
    n_gen: Annotated[str, typer.Option("-n", "--n-gen", help="Numbers of tokens to generate; 0: none.")] = "128",
    n_depth: Annotated[str, typer.Option("-d", "--n-depth", help="Tokens in the context before.")] = "0",
    parallel: Annotated[str, typer.Option("--parallel", help="How many texts generate together, as 1,2,4,8.")] = "1",
    threads: Annotated[str | None, typer.Option("-t", "--threads", help="Thread counts, as 1,2,4.")] = None,
    cache_type: CacheType = "f16",
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", help="Repetitions of each test.", min=1)] = 5,
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", help="md, csv, json or jsonl.", autocompletion=one_of("md", "csv", "json", "jsonl")
        ),
    ] = "md",
    profile: Annotated[bool, typer.Option("--profile", help="Also show where the time goes.")] = False,
    submit_text: Annotated[
        bool,
        typer.Option("--submit-text", help="Print one row for docs/benchmarks.md's table of machines, for an issue."),
    ] = False,
) -> None:
    """Time prefill and decode beside the memory roof.

    The roof: how fast the same run reads the bytes that a token takes, and does nothing with them.

    With --parallel several texts decode in one pass; tokens/s are those of all of them.

    Example: elutq bench model.gguf -p 64,512 -n 64 -t 1,2
    """
    from elutq_cli.benchmark.measure import run_tests
    from elutq_cli.benchmark.report import FORMATS
    from elutq_cli.benchmark.submission import Watch, check_tests, to_row
    from elutq_cli.benchmark.synthetic import LAYOUT
    from elutq_cli.generation.context_size import checked_cache_type
    from elutq_cli.pipeline.layout import Layout
    from elutq_native import Model, default_threads

    if output not in FORMATS:
        raise ElutqError(f"-o is {output}: choose md, csv, json or jsonl")
    checked_cache_type(cache_type)
    thread_counts = [default_threads()] if threads is None else numbers("-t", threads, 1)
    sizes = {"-p": numbers("-p", n_prompt, 0), "-n": numbers("-n", n_gen, 0), "-d": numbers("-d", n_depth, 0)}
    texts = numbers("--parallel", parallel, 1)
    if submit_text:
        check_tests(sizes | {"-t": thread_counts, "--parallel": texts}, output, profile)
    tests = plan_tests(sizes["-p"], sizes["-n"], sizes["-d"], thread_counts, texts)
    of_synthetic = {"--bits": bits, "--group-size": group_size, "--kind": kind}
    given = [option for option, value in of_synthetic.items() if value is not None]
    if given and synthetic is None:
        raise ElutqError(f"{given[0]} is of --synthetic: a model file has its own")
    layout = Layout(
        LAYOUT.bits if bits is None else bits,
        LAYOUT.group_size if group_size is None else group_size,
        LAYOUT.kind if kind is None else kind,
    )
    prepare_runtime()
    with model_path(model, synthetic, layout) as path, Model(path) as native:
        needed = max(test.n_depth + test.n_prompt + test.n_gen + 1 for test in tests)
        if needed > native.context_length:
            raise ElutqError(f"the tests need a context of {needed} tokens, the model has {native.context_length}")
        name = printable(path.name)
        if synthetic is not None:
            name = f"{synthetic}, {layout.bits} bits, groups of {layout.group_size}, {layout.kind}"
        rows, watch = [], Watch()
        for result in run_tests(native, tests, repetitions, profile, cache_type):
            rows.append(result.to_dict(native, name))
            watch.look()
            if sys.stderr.isatty():
                print(f"{result.test.name}, {result.test.n_threads} threads: done", file=sys.stderr)
        print(to_row(rows, watch) if submit_text else FORMATS[output](rows))


def numbers(flag: str, text: str, minimum: int) -> list[int]:
    """Parses a comma-separated list of whole numbers.

    Raises:
        ElutqError: It is not one, or a number is below the minimum.
    """
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise ElutqError(f"{flag} is {text!r}: give whole numbers, as 1,2,4") from None
    if min(values) < minimum:
        raise ElutqError(f"{flag} is {text!r}: numbers must be at least {minimum}")
    return values


def plan_tests(
    prompts: list[int], gens: list[int], depths: list[int], threads: list[int], parallel: list[int]
) -> list[Test]:
    """Returns prefill tests, and decode tests for each number of texts, in every combination; sizes of 0 are left out.

    Raises:
        ElutqError: Nothing is left, or nothing for several texts to do.
    """
    from elutq_cli.benchmark.measure import Test

    if max(parallel) > 1 and not any(gens):
        raise ElutqError("--parallel is of texts that generate: give -n a number above 0, or leave it out")
    tests = []
    for n_threads in threads:
        for depth in depths:
            tests += [Test(n_prompt, 0, depth, n_threads) for n_prompt in prompts if n_prompt]
            tests += [Test(0, n_gen, depth, n_threads, n_texts) for n_gen in gens if n_gen for n_texts in parallel]
    if not tests:
        raise ElutqError("nothing to measure: give -p or -n a number above 0")
    return tests


@contextmanager
def model_path(model: Path | None, synthetic: str | None, layout: Layout) -> Iterator[Path]:
    """Gives the file to measure; a synthetic one lives in a temporary folder and is deleted after.

    Raises:
        ElutqError: Neither or both were asked for, the file is not one of elutq, or there is no room for the synthetic
            one.
    """
    if (model is None) == (synthetic is None):
        raise ElutqError("give either a model file or --synthetic SHAPE")
    if model is not None:
        from elutq_formats.model_file import ModelFile

        refuse_folder(model)
        ModelFile.open(model)
        yield model
        return
    from elutq_cli.benchmark.synthetic import synthetic_bytes, write_synthetic
    from elutq_cli.machine.disk import free_room
    from elutq_cli.shapes import named_shape

    config = named_shape(str(synthetic))
    with tempfile.TemporaryDirectory(prefix="elutq-bench-") as folder:
        needed, free = synthetic_bytes(config, layout), free_room(Path(folder))
        if needed > free:
            raise ElutqError(
                f"{folder} has {free / 1e9:.1f} GB free, the model needs {needed / 1e9:.1f} GB: "
                "set TMPDIR to a folder with more"
            )
        print(f"writing {needed / 1e9:.2f} GB of random weights", file=sys.stderr)
        path = Path(folder) / f"{synthetic}.gguf"
        write_synthetic(path, config, layout)
        yield path
