"""Many sequences in one pass: each row has the bits that it has alone, whatever it is computed beside."""

import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
from conftest import GOLDEN
from make_models import expert_config, golden_config, write_random

from elutq_cli.reference import Transformer
from elutq_formats.model_file import ModelFile
from elutq_native import (
    CancelledError,
    ClosedError,
    ContextFullError,
    Engine,
    Model,
    NativeError,
    NativeSequence,
    Run,
    supported_kernels,
)

LENGTHS = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 140, 7, 31, 64, 128, 19]
"""Tokens of sixteen prompts: alone and together they take pieces of every form, and one more than a pass."""


def make_texts(model, rng):
    """Sixteen prompts, each cut into random pieces, and then some tokens one by one: [text][piece] token ids."""
    texts = []
    for length in (min(length, model.context_length - 5) for length in LENGTHS):
        tokens = rng.integers(model.vocab_size, size=length + 5).tolist()
        cuts = sorted(
            rng.choice(np.arange(1, length), size=min(length - 1, int(rng.integers(3))), replace=False).tolist()
        )
        bounds = [0, *cuts, *range(length, length + 6)]
        texts.append([tokens[first:end] for first, end in itertools.pairwise(bounds)])
    return texts


def evaluate(model, texts, cache_types, threads, rng=None, decode_threads=None):
    """Logits and hidden states of every token; alone, one text after the other, or with rng in random company."""
    found = [[] for _ in texts]
    with Engine(model, threads, n_sequences=4) as engine:
        engine.use_for_decode(decode_threads or threads)
        sequences = [NativeSequence(model, min(160, model.context_length), kind) for kind in cache_types]
        left = [list(pieces) for pieces in texts]
        while waiting := [i for i, pieces in enumerate(left) if pieces]:
            chosen = waiting[:1] if rng is None else rng.permutation(waiting)[: int(rng.integers(1, 17))]
            runs = []
            for i in chosen:
                piece = left[i].pop(0)
                hidden = np.full((len(piece), model.info.hidden_size), np.nan, np.float32)
                runs.append(Run(sequences[i], piece, len(piece), hidden if i % 2 else None))
            for i, run, logits in zip(chosen, runs, engine.eval(runs), strict=True):
                found[i].append(logits if run.hidden is None else np.hstack([logits, run.hidden]))
        for sequence in sequences:
            sequence.close()
    return [np.concatenate(pieces) for pieces in found]


@pytest.mark.parametrize("isa", supported_kernels())
def test_sixteen_sequences_in_random_company_have_the_bits_that_they_have_alone(isa, make_model):
    rng = np.random.default_rng(3)
    path = make_model(GOLDEN / "qwen3", bits=4, group_size=32)
    with Model(path, isa) as model:
        texts = make_texts(model, rng)
        cache_types = ["f16", "q8"] * 8
        alone = evaluate(model, texts, cache_types, threads=1)
        for threads in (1, 2, 3):
            for found, wanted in zip(evaluate(model, texts, cache_types, threads, rng), alone, strict=True):
                assert np.array_equal(found, wanted)


@pytest.mark.parametrize("isa", supported_kernels())
@pytest.mark.parametrize("bits", [2, 4])
def test_sequences_that_share_experts_have_the_bits_that_they_have_alone(bits, isa, tmp_path):
    """How many rows an expert has, and beside which, is by company; three of four rows share one."""
    rng = np.random.default_rng(24)
    path = tmp_path / "model.gguf"
    write_random(path, expert_config(n_experts=4, n_experts_used=3), bits=bits, group_size=32)
    with Model(path, isa) as model:
        texts = make_texts(model, rng)
        alone = evaluate(model, texts, ["f16", "q8"] * 8, threads=1)
        for threads in (1, 3):
            for found, wanted in zip(evaluate(model, texts, ["f16", "q8"] * 8, threads, rng), alone, strict=True):
                assert np.array_equal(found, wanted)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_prompt_beside_decoding_texts_changes_none_of_them(bits, make_model):
    rng = np.random.default_rng(bits)
    with Model(make_model(bits=bits, output_bits=16)) as model:
        texts = make_texts(model, rng)
        alone = evaluate(model, texts, ["f16"] * 16, threads=1)
        together = evaluate(model, texts, ["f16"] * 16, 2, rng)
        assert all(map(np.array_equal, together, alone))


def test_windows_slide_for_each_sequence_by_its_own_position(make_model):
    rng = np.random.default_rng(6)
    with Model(make_model(GOLDEN / "mistral-sliding-window", bits=4, group_size=32)) as model:
        texts = make_texts(model, rng)
        alone = evaluate(model, texts, ["q8", "f16"] * 8, threads=1)
        assert all(map(np.array_equal, evaluate(model, texts, ["q8", "f16"] * 8, 2, rng), alone))


@pytest.mark.parametrize("cache_type", ["f16", "q8"])
def test_threads_that_share_the_keys_of_a_long_text_change_no_bit(cache_type, novels_2bit):
    """Two KV heads for three threads and more: each takes parts of the keys, of one text and of two."""
    rng = np.random.default_rng(9)
    texts = [rng.integers(4096, size=length).tolist() for length in (770, 300, 20)]
    found = []
    with Model(novels_2bit) as model:
        for threads in (1, 2, 3, 7):
            with Engine(model, threads, 3) as engine:
                sequences = [NativeSequence(model, 800, cache_type) for _ in texts]
                engine.eval([Run(sequence, text, 0) for sequence, text in zip(sequences, texts, strict=True)])
                logits = [engine.eval([Run(sequence, [7]) for sequence in sequences[:n]]) for n in (1, 2, 3)]
                found.append(np.concatenate([row for rows in logits for row in rows]))
    assert all(np.array_equal(logits, found[0]) for logits in found[1:])


@pytest.mark.parametrize("decode_threads", [1, 2, 4, 5])
def test_passes_of_few_rows_on_fewer_threads_change_no_bit(decode_threads, make_model):
    """In random company passes of few rows and of many take turns, so that threads sit out some of them."""
    rng = np.random.default_rng(decode_threads)
    with Model(make_model(GOLDEN / "qwen3", bits=2, group_size=32)) as model:
        texts = make_texts(model, rng)
        alone = evaluate(model, texts, ["f16", "q8"] * 8, threads=1)
        found = evaluate(model, texts, ["f16", "q8"] * 8, 5, rng, decode_threads)
        assert all(map(np.array_equal, found, alone))


def test_threads_that_an_engine_has_not_cannot_decode(novels_2bit):
    with Model(novels_2bit) as model, Engine(model, 3) as engine:
        for threads in (0, -1, 4):
            with pytest.raises(NativeError, match=f"{threads} threads of 3 cannot be used"):
                engine.use_for_decode(threads)
        engine.use_for_decode(2)
        assert (engine.threads, engine.decode_threads) == (3, 2)


def test_a_part_of_a_pass_is_timed_and_leaves_nothing(novels_2bit):
    rng = np.random.default_rng(5)
    text = rng.integers(4096, size=12).tolist()
    with Model(novels_2bit) as model, Engine(model, 2) as engine, NativeSequence(model, 16) as sequence:
        (wanted,) = engine.eval([Run(sequence, text)])
        sequence.rewind(0)
        assert all(engine.rehearse(first, n) > 0 for first, n in ((0, 6), (0, 1), (5, 1), (2, 3)))
        assert sequence.position == 0
        assert np.array_equal(engine.eval([Run(sequence, text)])[0], wanted)
        for first, n in ((0, 0), (0, 7), (6, 1), (5, 2)):
            with pytest.raises(NativeError, match=f"a model of 6 layers has not {n} of them from {first} on"):
                engine.rehearse(first, n)
        for first, n in ((-1, 1), (0, 2**32)):
            with pytest.raises(NativeError, match="cannot be"):
                engine.rehearse(first, n)
        engine.close()
        with pytest.raises(ClosedError):
            engine.rehearse(0, 1)


@pytest.fixture
def model(novels_2bit):
    with Model(novels_2bit) as model:
        yield model


def test_a_run_that_cannot_be_changes_no_sequence(model):
    with Engine(model, 1, 2) as engine, NativeSequence(model, 8) as first, NativeSequence(model, 4) as second:
        engine.eval([Run(first, [1, 2, 3], 0), Run(second, [1])])
        for run, error in [
            (Run(second, [1, 2, 3, 4]), ContextFullError),
            (Run(second, [-1]), NativeError),
            (Run(second, []), NativeError),
            (Run(second, [1], 2), NativeError),
            (Run(first, [5]), NativeError),
        ]:
            with pytest.raises(error):
                engine.eval([Run(first, [4]), run])
        assert (first.position, second.position) == (3, 1)
        engine.eval([Run(first, [4]), Run(second, [2])])
        with pytest.raises(NativeError, match="nothing"):
            engine.eval([])


def test_hidden_states_that_cannot_be_written_are_refused(model):
    hidden = np.zeros((1, model.info.hidden_size), np.float32)
    hidden.flags.writeable = False
    with Engine(model, 1) as engine, NativeSequence(model, 8) as sequence:
        with pytest.raises(ValueError, match="to write to"):
            engine.eval([Run(sequence, [5], 0, hidden)])
        assert sequence.position == 0


@pytest.mark.parametrize("isa", supported_kernels())
def test_the_widest_input_may_be_that_of_a_matrix_in_fp16_of_any_width(isa, tmp_path):
    """100 columns are 1.6 lines of a cache of tables for each row. In floats, and with no choice of experts to change.

    Each row by itself: what of another row's tables it read would be all of one row. Rounding leaves 3.9 % at most.
    """
    mixture = expert_config(hidden_size=64, head_dim=16, shared_expert_intermediate_size=100)
    mixture = replace(mixture, n_experts_used=mixture.n_experts)
    dense = replace(golden_config("llama2-gqa-sharded"), hidden_size=64, intermediate_size=100)
    tokens = list(range(46))
    for name, config in {"mixture": mixture, "dense": dense}.items():
        path = tmp_path / f"{name}.gguf"
        write_random(path, config, bits=2, group_size=32)
        expected = Transformer(ModelFile.open(path)).logits(np.array([tokens]))[0]
        with Model(path, isa) as model, model.session(64, 2) as batch, model.session(64, 1) as single:
            together = np.concatenate(
                [batch.eval(tokens[:6], all_logits=True), batch.eval(tokens[6:], all_logits=True)]
            )
            alone = np.stack([single.eval([token]) for token in tokens])
        for found in (together, alone):
            assert (np.linalg.norm(found - expected, axis=1) < 0.05 * np.linalg.norm(expected, axis=1)).all()


def test_a_sequence_of_another_model_is_refused(model, novels_2bit):
    with (
        Model(novels_2bit) as other,
        Engine(model, 1) as engine,
        NativeSequence(other, 8) as sequence,
        pytest.raises(NativeError, match="another model"),
    ):
        engine.eval([Run(sequence, [1])])


def test_cancelling_ends_the_pass_under_way_and_no_other(model):
    tokens = [1] * 900
    with Engine(model, 2, 2) as engine, NativeSequence(model, 1000) as first, NativeSequence(model, 1000) as second:
        wanted = engine.eval([Run(first, [5])])[0]
        engine.cancel()  # nothing is under way
        engine.eval([Run(second, [7])])
        first.rewind(0)
        timer = threading.Timer(0.02, engine.cancel)
        timer.start()
        with pytest.raises(CancelledError):
            for _ in range(1000):
                engine.eval([Run(first, tokens), Run(second, [7])])
                first.rewind(0)
        timer.join()
        first.rewind(0)
        assert np.array_equal(engine.eval([Run(first, [5]), Run(second, [7])])[0], wanted)


def test_a_pass_cancelled_while_it_chooses_experts_leaves_nothing_to_the_next(tmp_path):
    """Choosing among so many takes most of a pass, so that most are cancelled when some rows have chosen."""
    path, n_tokens, n_cancelled = tmp_path / "model.gguf", 100, 0
    mixture = expert_config(
        hidden_size=32,
        num_hidden_layers=1,
        n_experts=512,
        n_experts_used=64,
        expert_intermediate_size=32,
        shared_expert_intermediate_size=0,
    )
    write_random(path, mixture, bits=2, group_size=32, half="")
    tokens = [token % 256 for token in range(n_tokens)]
    with Model(path) as model, Engine(model, 3) as engine, NativeSequence(model, n_tokens) as sequence:
        wanted = engine.eval([Run(sequence, tokens)])[0]
        for round in range(30):
            sequence.rewind(0)
            timer = threading.Timer(0.0002 * round, engine.cancel)
            timer.start()
            try:
                engine.eval([Run(sequence, tokens)])
            except CancelledError:
                n_cancelled += 1
            timer.join()
            sequence.rewind(0)
            assert np.array_equal(engine.eval([Run(sequence, tokens)])[0], wanted)
    assert n_cancelled > 0


def test_an_engine_or_a_sequence_closed_is_an_error(model):
    engine, sequence, other = Engine(model, 1), NativeSequence(model, 8), NativeSequence(model, 8)
    sequence.close()
    with pytest.raises(ClosedError, match="the sequence is closed"):
        engine.eval([Run(other, [1]), Run(sequence, [1])])
    engine.eval([Run(other, [1])])
    engine.close()
    with pytest.raises(ClosedError, match="the engine is closed"):
        engine.eval([Run(other, [1])])
    assert other.position == 1
    with Engine(model, 2) as another:
        another.eval([Run(other, [1])])
    assert other.position == 2


def test_closing_a_sequence_beneath_its_pass_lets_the_pass_end(novels_2bit):
    with Model(novels_2bit, "scalar") as model, Engine(model, 2) as engine:
        for delay in (0.0, 0.01, 0.1):
            sequence = NativeSequence(model, 1000)
            timer = threading.Timer(delay, sequence.close)
            timer.start()
            with pytest.raises(ClosedError, match="the sequence is closed"):
                while True:
                    engine.eval([Run(sequence, [1] * 200)])
                    sequence.rewind(0)
            timer.join()
