"""Layers with a window hold its keys and values and no more: same logits, same bits, and what can be taken back."""

from dataclasses import replace

import numpy as np
import pytest
from gguf_container import Container
from make_models import golden_config, write_random

from elutq_cli.reference import Transformer
from elutq_formats.model_file import ModelFile
from elutq_native import (
    CACHE_TYPES,
    REWIND_TOKENS,
    Engine,
    Model,
    NativeError,
    NativeSequence,
    OverwrittenError,
    Run,
    lib,
    supported_kernels,
)

N_TOKENS = 1300
TOKENS = np.random.default_rng(11).integers(6, 100, N_TOKENS).tolist()
FORMS = [
    ("gemma3", 6),
    ("gemma3", 150),
    ("ministral", 40),
    ("mistral-sliding-window", 1),
    ("mistral-sliding-window", 2),
]
FORMS += [("mistral-sliding-window", 700), ("mistral-sliding-window", 5000)]
PIECES = [37, 1, 128, 200, 3]


def write(path, family, window, context=N_TOKENS):
    """A model of fp16 matrices, so that only the cache rounds."""
    config = replace(golden_config(family), max_position_embeddings=context, sliding_window=window)
    write_random(path, config, bits=4, group_size=32, half="")
    return path


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: f"{form[0]}-{form[1]}")
def model_and_logits(request, tmp_path_factory):
    """A file, and the reference's logits of TOKENS."""
    path = write(tmp_path_factory.mktemp("windows") / "model.gguf", *request.param)
    return path, Transformer(ModelFile.open(path)).logits(np.array(TOKENS))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A file in which two layers of three have a window of 6."""
    return write(tmp_path_factory.mktemp("windows") / "gemma.gguf", "gemma3", 6)


def cut(tokens, sizes):
    """The tokens in pieces of these sizes, in turn."""
    pieces = []
    while tokens:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(tokens[:size])
        tokens = tokens[size:]
    return pieces


def evaluate(session, tokens, sizes):
    """Logits of all tokens."""
    return np.concatenate([session.eval(piece, all_logits=True) for piece in cut(tokens, sizes)])


def relative_rms(found, wanted):
    return np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))


@pytest.mark.parametrize(("cache_type", "bound"), [("f16", 0.003), ("q8", 0.02)])
def test_texts_of_many_windows_have_the_references_logits(model_and_logits, cache_type, bound):
    path, wanted = model_and_logits
    single = []
    for isa in supported_kernels()[:: len(supported_kernels()) - 1]:
        for sizes in (PIECES, [1]):
            with Model(path, isa) as model, model.session(N_TOKENS, 1, cache_type) as session:
                found = evaluate(session, TOKENS, sizes)
            errors = [relative_rms(part, of) for part, of in zip(np.split(found, 4), np.split(wanted, 4), strict=True)]
            print(isa, sizes, errors)
            assert max(errors) < bound
        single.append(found)
    assert (single[0] == single[-1]).all()


def test_these_logits_would_show_a_key_too_few_or_too_many(gemma):
    file = ModelFile.open(gemma)
    wanted = Transformer(file).logits(np.array(TOKENS))
    for window in (5, 7):
        file.config = replace(file.config, sliding_window=window)
        assert relative_rms(Transformer(file).logits(np.array(TOKENS)), wanted) > 0.1


def test_texts_in_company_have_their_own_bits(gemma):
    """Longer than what is held, of both types of cache, whose rings begin anew at different passes."""
    with Model(gemma) as model, Engine(model, 2, n_sequences=3) as engine:
        work = [(("f16", "q8")[i % 2], cut(TOKENS[i:900], [100 + 9 * i, 1, 2])) for i in range(3)]
        alone = []
        for cache_type, pieces in work:
            with NativeSequence(model, N_TOKENS, cache_type) as sequence:
                alone.append([engine.eval([Run(sequence, piece)])[0] for piece in pieces])
        sequences = [NativeSequence(model, N_TOKENS, cache_type) for cache_type, _ in work]
        for turn in range(max(len(pieces) for _, pieces in work)):
            chosen = [i for i, (_, pieces) in enumerate(work) if turn < len(pieces)]
            made = engine.eval([Run(sequences[i], work[i][1][turn]) for i in chosen])
            for i, logits in zip(chosen, made, strict=True):
                assert np.array_equal(logits, alone[i][turn])
        for sequence in sequences:
            sequence.close()


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_what_is_taken_back_within_reach_comes_out_the_same(gemma, cache_type):
    with Model(gemma) as model, model.session(N_TOKENS, 1, cache_type) as session:
        first = evaluate(session, TOKENS[:1200], [1])
        for n_back in (1, 5, 6, 7, 300, REWIND_TOKENS):
            session.rewind(1200 - n_back)
            assert np.array_equal(evaluate(session, TOKENS[1200 - n_back : 1200], [1]), first[1200 - n_back :])
        # Other tokens in between leave nothing behind.
        session.rewind(1200 - REWIND_TOKENS)
        session.eval([7] * (REWIND_TOKENS - 100))
        session.rewind(1200 - REWIND_TOKENS)
        assert np.array_equal(
            evaluate(session, TOKENS[1200 - REWIND_TOKENS : 1200], [1]), first[1200 - REWIND_TOKENS :]
        )


def test_what_is_too_far_back_is_refused_and_changes_nothing(gemma):
    with Model(gemma) as model, model.session(N_TOKENS, 1) as session, model.session(N_TOKENS, 1) as other:
        evaluate(session, TOKENS[:1200], PIECES), evaluate(other, TOKENS[:1200], PIECES)
        for position in (1, 6, 600, 1199 - REWIND_TOKENS - 1):
            assert not session.can_rewind(position)
            with pytest.raises(OverwrittenError, match="no longer hold"):
                session.rewind(position)
            with session._sequence._handle.use() as pointer:
                assert lib.elutq_sequence_rewind(pointer, position) == lib.ELUTQ_ERROR_OVERWRITTEN
        with pytest.raises(ValueError, match="cannot rewind"):
            session.rewind(1201)
        assert session.can_rewind(1200 - REWIND_TOKENS) and session.can_rewind(0) and session.position == 1200
        assert np.array_equal(session.eval(TOKENS[1200:]), other.eval(TOKENS[1200:]))
        session.rewind(0)
        other = model.session(N_TOKENS, 1)
        assert np.array_equal(evaluate(session, TOKENS, PIECES), evaluate(other, TOKENS, PIECES))
        other.close()


def test_a_short_text_can_be_taken_back_to_any_token(gemma):
    """Until the first key has to give way."""
    with Model(gemma) as model, model.session(N_TOKENS, 1) as session:
        session.eval(TOKENS[: 6 + REWIND_TOKENS])
        assert session.can_rewind(1)
        session.eval(TOKENS[:1])
        assert not session.can_rewind(1) and session.can_rewind(6)
        session.rewind(0)
        session.eval(TOKENS[:100])
        assert session.can_rewind(1)


def test_a_model_without_windows_can_be_taken_back_to_any_token(tmp_path):
    path = tmp_path / "model.gguf"
    config = replace(golden_config("llama2-gqa-sharded"), max_position_embeddings=N_TOKENS)
    write_random(path, config, bits=4, group_size=32)
    with Model(path) as model, model.session(N_TOKENS, 1) as session:
        session.eval(TOKENS)
        assert all(session.can_rewind(position) for position in (0, 1, 600, N_TOKENS))
        assert model.cache_bytes(N_TOKENS) == N_TOKENS * model.kv_bytes_per_token() == model.attended_bytes(N_TOKENS)


def test_a_long_run_that_fails_leaves_a_text_that_says_so(gemma, tmp_path):
    """One of up to REWIND_TOKENS tokens leaves it as it was."""
    container, path = Container(gemma.read_bytes()), tmp_path / "damaged.gguf"
    with Model(gemma) as model:
        width = 2 * model.info.hidden_size
    container.patch("token_embd.weight", 5 * width, b"\x00\x7e" * (width // 2))  # the head too: a logit is no number
    path.write_bytes(container.bytes())
    with Model(path) as model, Engine(model, 1) as engine, NativeSequence(model, N_TOKENS) as sequence:
        engine.eval([Run(sequence, TOKENS[:600], 0)])
        for n_tokens in (REWIND_TOKENS, REWIND_TOKENS + 2):
            with pytest.raises(NativeError, match="token_embd"):
                engine.eval([Run(sequence, TOKENS[600 : 600 + n_tokens], 1)])
            assert sequence.position == 600
            assert sequence.can_rewind(600) == (n_tokens == REWIND_TOKENS)
        with pytest.raises(OverwrittenError, match="rewind to 0"):
            engine.eval([Run(sequence, TOKENS[:1], 0)])
        with pytest.raises(OverwrittenError):
            sequence.rewind(600)
        sequence.rewind(0)
        engine.eval([Run(sequence, TOKENS, 0)])
        assert sequence.position == N_TOKENS


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("context", [N_TOKENS, 950, 905])
def test_a_state_goes_on_as_the_text_it_came_from(gemma, cache_type, context):
    """And as far back: in pieces that layers with a window no longer have, have in part, or have whole."""
    with (
        Model(gemma) as model,
        model.session(N_TOKENS, 2, cache_type) as session,
        model.session(context, 1, cache_type) as other,
    ):
        evaluate(session, TOKENS[:900], PIECES)
        sequence, copy = session._sequence, other._sequence
        assert sequence.oldest == 900 - 6 - REWIND_TOKENS
        for first in range(0, 900, 64):
            n_tokens = min(64, 900 - first)
            state = session.export_state(first, n_tokens)
            assert state.size == sequence.state_bytes(first, n_tokens, sequence.oldest)
            if first:  # a state without what comes before it is no text yet
                assert copy.can_rewind(first) == (first > sequence.oldest + 5)
            other.import_state(state, n_tokens)
        assert copy.oldest == sequence.oldest
        assert np.array_equal(other.export_state(0, 900), session.export_state(0, 900))
        for _ in range(2):
            assert np.array_equal(other.eval(TOKENS[900:905]), session.eval(TOKENS[900:905]))
            for one in (session, other):
                one.rewind(905 - REWIND_TOKENS)
                one.eval(TOKENS[905 - REWIND_TOKENS : 900])


def test_a_state_of_too_few_recent_tokens_is_no_text_to_go_on_from(gemma):
    with Model(gemma) as model, model.session(N_TOKENS, 1) as session, model.session(N_TOKENS, 1) as other:
        session.eval(TOKENS[:40])
        rows = session.export_state(0, 40).reshape(3, 2, 40, -1)
        for n_recent in (0, 4, 5, 40):
            state = np.concatenate(
                [rows[0, :, 40 - n_recent :].ravel(), rows[1].ravel(), rows[2, :, 40 - n_recent :].ravel()]
            )
            other.rewind(0)
            other.import_state(state, 40)
            assert other.position == 40
            if n_recent < 5:
                with pytest.raises(OverwrittenError):
                    other.eval([8])
            else:
                assert np.array_equal(other.eval([8]), session.eval([8]))
                session.rewind(40)
        with pytest.raises(ValueError, match="does not fit"):
            other.import_state(state[:-1], 40)


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_bytes_are_those_of_windows_and_of_the_whole_context(gemma, cache_type):
    """Two of three layers have a window of 6; one head of 16 numbers."""
    row = 2 * (32 if cache_type == "f16" else 20)
    with Model(gemma) as model:
        assert (model.info.sliding_window, model.info.n_sliding_layers) == (6, 2)
        for context, held, seen in ((1, 1, 1), (6, 6, 6), (518, 518, 6), (519, 518, 6), (N_TOKENS, 518, 6)):
            assert model.cache_bytes(context, cache_type) == row * (context + 2 * held)
            assert model.attended_bytes(context, cache_type) == row * (context + 2 * seen)


def test_a_state_of_all_that_is_held_is_as_large_as_the_cache(gemma):
    with Model(gemma) as model, model.session(N_TOKENS, 1) as session:
        session.eval(TOKENS)
        assert session.export_state(0, N_TOKENS).size == model.cache_bytes(N_TOKENS)
