"""The C runtime's logits against the numpy reference on the same dequantized weights, and a session's behaviour."""

import os
import threading
import time

import numpy as np
import pytest
from conftest import DATA, FAMILIES, GOLDEN, NOVELS

from elutq_cli.reference import Transformer
from elutq_cli.reference.transformer import rms_norm
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.model_file import ModelFile
from elutq_formats.model_writer import write_model
from elutq_formats.names import gguf_name
from elutq_formats.origin import Origin
from elutq_formats.tensor_record import TensorRecord
from elutq_formats.tokenizer import Tokenizer
from elutq_native import (
    CancelledError,
    ContextFullError,
    Engine,
    Model,
    NativeError,
    NativeSequence,
    Run,
    default_threads,
    ffi,
    lib,
    supported_kernels,
)

PROMPT = list(range(40, 104))


def relative_rms(found, wanted):
    return np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2))


def logits(path, tokens, isa=None, threads=1, step=None):
    """Logits of all tokens, given at once or `step` at a time."""
    with Model(path, isa) as model, model.session(len(tokens), threads) as session:
        step = step or len(tokens)
        parts = [session.eval(tokens[i : i + step], all_logits=True) for i in range(0, len(tokens), step)]
    return np.concatenate(parts)


@pytest.fixture(scope="session", params=FAMILIES)
def half_model(request, tmp_path_factory):
    """A golden checkpoint as a model file with every matrix in fp16: nothing in it but fp16 rounds."""
    path = tmp_path_factory.mktemp("half") / f"{request.param}.gguf"
    with Checkpoint.open(GOLDEN / request.param) as checkpoint:
        tensors, plain = [], checkpoint.config.float_names()
        for name, shape in checkpoint.config.tensor_shapes().items():
            *stack, rows, columns = (1, *shape) if len(shape) == 1 else shape
            record = TensorRecord(gguf_name(name), 16, rows, columns, n_experts=stack[0] if stack else None)
            if name in plain:
                record = TensorRecord.of_floats(gguf_name(name), shape)
            tensors.append((record, lambda name=name: checkpoint.load(name)))
        write_model(path, checkpoint.config, tensors, origin=Origin(request.param, request.param), tokenizer_json=None)
    return path


@pytest.mark.parametrize("isa", supported_kernels())
@pytest.mark.parametrize("step", [None, 1, 3], ids=["batch", "tokens", "threes"])
def test_every_family_in_fp16_matches_the_reference(half_model, step, isa):
    """Only the fp16 KV cache (2^-11 a value) separates the two, so a wrong bias, norm, angle or mask would show."""
    tokens = np.load(GOLDEN / half_model.stem / "expected.npz")["tokens"].ravel()[:48].tolist()
    wanted = Transformer(ModelFile.open(half_model)).logits(np.array(tokens))
    assert relative_rms(logits(half_model, tokens, isa, step=step), wanted) < 1e-3


def test_hidden_states_are_those_that_the_reference_gives_its_head(half_model):
    tokens = np.load(GOLDEN / half_model.stem / "expected.npz")["tokens"].ravel()[:20].tolist()
    reference = Transformer(ModelFile.open(half_model))
    epsilon = reference.config.rms_norm_eps
    wanted = rms_norm(reference.hidden(np.array(tokens)), reference.load("model.norm.weight"), epsilon, np)
    with Model(half_model) as model, Engine(model, 2) as engine, NativeSequence(model, 20) as sequence:
        found = np.full((20, model.info.hidden_size), np.nan, np.float32)
        for first, end in ((0, 15), (15, 16), (16, 20)):
            (logits,) = engine.eval([Run(sequence, tokens[first:end], 0, found[first:end])])
            assert logits.shape == (0, model.vocab_size)
        for wrong in (found[:3], found[:2].astype(np.float64), found[:2, :-1], found[:4:2]):
            with pytest.raises(ValueError, match="hidden states need"):
                engine.eval([Run(sequence, tokens[:2], 0, wrong)])
        assert sequence.position == 20
    assert relative_rms(found, wanted) < 1e-3


@pytest.mark.parametrize("step", [None, 1], ids=["batch", "tokens"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mistral-nemo"])  # its 16 columns fit no group
def test_every_family_quantized_is_close_to_the_reference(family, step, make_model):
    """Random weights amplify the tables' rounding; the bundled model has the strict bound below."""
    path = make_model(GOLDEN / family, bits=4, group_size=32)
    tokens = np.load(GOLDEN / family / "expected.npz")["tokens"].ravel()[:48].tolist()
    wanted = Transformer(ModelFile.open(path)).logits(np.array(tokens))
    assert relative_rms(logits(path, tokens, step=step), wanted) < 0.06


@pytest.mark.parametrize("isa", supported_kernels())
@pytest.mark.parametrize(
    ("options", "kind"),
    [({}, "free8"), ({"bits": 4}, "free8"), ({"scale_bits": 16, "group_size": 128}, "free16")],
    ids=["by default", "4 bits", "float16 scales"],
)
def test_novels_within_two_percent_of_the_reference(options, kind, isa, make_model):
    """5 prompts x 64 positions: relative RMS under 2 %, the likeliest token equal at 97 % of positions."""
    path = make_model(**options)
    model = ModelFile.open(path)
    assert {str(record.kind) for record in model.tensors.values() if record.group_size} == {kind}
    tokens = Tokenizer.from_json(model.tokenizer_json, model.config).encode((DATA / "sampled.txt").read_text())
    reference = Transformer(model)
    wanted, batch, single = [], [], []
    for prompt in (tokens[i * 1000 : i * 1000 + 64] for i in range(5)):
        wanted.append(reference.logits(np.array(prompt)))
        batch.append(logits(path, prompt, isa))
        single.append(logits(path, prompt, isa, step=1))
    for found in (np.stack(batch), np.stack(single)):
        error = relative_rms(found, np.stack(wanted))
        agreement = np.mean(found.argmax(-1) == np.stack(wanted).argmax(-1))
        print(f"{isa}: relative RMS {error:.4f}, top-1 agreement {agreement:.4f}")
        assert error < 0.02
        assert agreement >= 0.97


@pytest.mark.parametrize("isa", supported_kernels())
@pytest.mark.parametrize("step", [1, 64])
def test_threads_and_repetition_change_nothing(isa, step, novels_2bit):
    once = logits(novels_2bit, PROMPT, isa, threads=1, step=step)
    for threads in (1, 2, 3):
        assert np.array_equal(logits(novels_2bit, PROMPT, isa, threads=threads, step=step), once)


def test_decode_gives_the_same_bits_on_every_isa(novels_2bit):
    scalar = logits(novels_2bit, PROMPT, "scalar", step=1)
    for isa in supported_kernels():
        assert np.array_equal(logits(novels_2bit, PROMPT, isa, step=1), scalar), isa


def test_a_prompt_longer_than_one_pass(novels_2bit):
    """300 tokens take three passes: the same as three calls, however many logits are asked for."""
    tokens = [(7 * i) % 4096 for i in range(300)]
    every = logits(novels_2bit, tokens)
    assert np.array_equal(every, logits(novels_2bit, tokens, step=128))
    with Model(novels_2bit) as model, model.session(threads=1) as session:
        assert np.array_equal(session.eval(tokens), every[-1])


def test_rewind_forgets(novels_2bit):
    with Model(novels_2bit) as model, model.session(threads=1) as session:
        first = session.eval(PROMPT, all_logits=True)
        session.rewind(10)
        assert session.position == 10
        session.eval([5, 6, 7])
        session.rewind(0)
        assert np.array_equal(session.eval(PROMPT, all_logits=True), first)
        for position in (65, -1, 2**32, -(2**40)):
            with pytest.raises(ValueError, match="rewind"):
                session.rewind(position)
            assert session.position == 64


def test_sessions_share_a_model_across_threads(novels_2bit):
    alone = logits(novels_2bit, PROMPT, step=1)
    results = {}
    with Model(novels_2bit) as model:

        def run(name):
            with model.session(threads=1) as session:
                results[name] = np.concatenate([session.eval([token], all_logits=True) for token in PROMPT])

        workers = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(results) == 4 and all(np.array_equal(found, alone) for found in results.values())


def test_a_full_context_is_an_error_that_changes_nothing(novels_2bit):
    with Model(novels_2bit) as model, model.session(context_size=8, threads=1) as session:
        session.eval([1, 2, 3])
        with pytest.raises(ContextFullError, match="3 of 8 tokens"):
            session.eval([4] * 6)
        assert session.position == 3
        session.eval([4] * 5)
        assert session.position == 8


def test_cancel_ends_an_evaluation_and_leaves_the_context(novels_2bit):
    with Model(novels_2bit) as model, model.session(threads=2) as session:
        session.eval(PROMPT)
        session.cancel()  # nothing is under way, and nothing that follows ends
        before = session.eval([5])
        session.rewind(len(PROMPT))
        timer = threading.Timer(0.02, session.cancel)
        timer.start()
        with pytest.raises(CancelledError):
            for _ in range(1000):
                session.eval([1] * 900)
                session.rewind(len(PROMPT))
        timer.join()
        session.rewind(len(PROMPT))
        assert np.array_equal(session.eval([5]), before)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([], "no tokens"), ([-1], "outside"), ([4096], "outside"), ([2**32 + 5], "outside"), ([-1, 2**70], "outside")],
)
def test_impossible_tokens(tokens, message, novels_2bit):
    with Model(novels_2bit) as model, model.session(threads=1) as session, pytest.raises(NativeError, match=message):
        session.eval(tokens)


@pytest.mark.parametrize("tokens", [[5.9], [[1, 2, 3]], ["a"], [None], [True]])
def test_tokens_that_are_no_list_of_whole_numbers_are_refused(tokens, novels_2bit):
    with Model(novels_2bit) as model, model.session(8, 1) as session:
        with pytest.raises(ValueError, match="whole numbers"):
            session.eval(tokens)
        assert session.position == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NativeError, match="not a regular file"):
        Model(tmp_path / "pipe")


@pytest.mark.parametrize(("context", "threads"), [(1025, 1), (8, 257)])
def test_impossible_sessions(context, threads, novels_2bit):
    with Model(novels_2bit) as model, pytest.raises(NativeError) as caught:
        model.session(context, threads)
    assert caught.value.bad_input


def test_unknown_isa_is_refused(novels_2bit, monkeypatch):
    with pytest.raises(NativeError, match="quantum"):
        Model(novels_2bit, isa="quantum")
    monkeypatch.setenv("ELUTQ_ISA", "scalar")
    with Model(novels_2bit) as model:
        assert model.info.isa == "scalar"


def test_info_agrees_with_the_file(novels_2bit):
    file = ModelFile.open(novels_2bit)
    with Model(novels_2bit) as model:
        info = model.info
        assert model.kv_bytes_per_token() == 2 * 6 * 2 * 64 * 2
        assert model.kv_bytes_per_token("q8") == 2 * 6 * 2 * (64 + 4)
    assert (info.vocab_size, info.context_length) == (4096, 1024)
    assert info.file_bytes == novels_2bit.stat().st_size
    matrices = sum(record.n_bytes for record in file.tensors.values() if record.bits != 32)
    assert info.bytes_per_token == matrices + file.tensors["token_embd.weight"].n_bytes // 4096
    assert 1 <= default_threads() <= 256


def test_many_threads_on_few_cores_finish(novels_2bit):
    start = time.monotonic()
    assert np.array_equal(logits(novels_2bit, PROMPT, threads=16, step=1), logits(novels_2bit, PROMPT, step=1))
    print(f"16 threads: {time.monotonic() - start:.2f} s")


def test_an_int8_cache_changes_predictions_far_less_than_2_bits_do(novels_2bit):
    tokens = np.random.default_rng(8).integers(4096, size=300)
    with Checkpoint.open(NOVELS) as checkpoint:
        original = log_softmax(Transformer(checkpoint).logits(tokens))
    with Model(novels_2bit) as model, model.session(300, 1) as session, model.session(300, 2, "q8") as rounded:
        exact = log_softmax(session.eval(tokens, all_logits=True))
        found = log_softmax(rounded.eval(tokens, all_logits=True))
    assert 0 < divergence(exact, found) < divergence(original, exact) / 100


def log_softmax(logits):
    logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def divergence(p, q):
    """Mean KL divergence of log-probabilities q from p: (n, vocab_size)."""
    return (np.exp(p) * (p - q)).sum(axis=1).mean()


@pytest.mark.parametrize("cache_type", ["f16", "q8"])
def test_a_state_goes_on_as_the_session_it_came_from(novels_2bit, cache_type):
    tokens = [int(token) for token in np.random.default_rng(5).integers(4096, size=50)]
    with (
        Model(novels_2bit) as model,
        model.session(80, 1, cache_type) as session,
        model.session(64, 2, cache_type) as other,
    ):
        session.eval(tokens)
        other.import_state(session.export_state(0, 20), 20)
        other.import_state(session.export_state(20, 30), 30)
        assert other.position == 50
        np.testing.assert_array_equal(other.eval([7]), session.eval([7]))
        again = other.export_state(0, 50)
        np.testing.assert_array_equal(again, session.export_state(0, 50))
        again[-1] ^= 0x04  # the last value of the last token, or its scale: exponent bits
        other.rewind(0)
        other.import_state(again, 50)
        session.rewind(50)
        assert (other.eval([7]) != session.eval([7])).any()


def test_states_that_do_not_fit_are_refused(novels_2bit):
    with Model(novels_2bit) as model, model.session(16, 1) as session:
        session.eval([1] * 10)
        state = session.export_state(0, 10)
        for first, n_tokens in ((0, 11), (10, 1), (11, 0), (-1, 2), (2**31, 2**31)):
            with pytest.raises(ValueError, match="are not among"):
                session.export_state(first, n_tokens)
        with pytest.raises(ContextFullError):
            session.import_state(session.export_state(0, 7), 7)
        for wrong, n_tokens in ((state[:-1], 10), (state, 9), (state, 11), (state[:0], 1), (state, -10), (state, 0)):
            with pytest.raises(ValueError, match="does not fit"):
                session.import_state(wrong, n_tokens)
        rows = session.export_state(0, 6).view(np.uint16).reshape(6, 2, 2, 6, 64)
        for value in (0x7C00, 0xFC00, 0x7E01):
            rows[3, 1, 0, 2, 5] = value
            with pytest.raises(NativeError, match="not finite"):
                session.import_state(rows.view(np.uint8), 6)
        assert session.position == 10
        with session._sequence._handle.use() as pointer:
            room = ffi.new("uint8_t[]", len(state) + 1)
            for n_bytes in (0, len(state) - 1, len(state) + 1):
                assert lib.elutq_sequence_export(pointer, 0, 10, room, n_bytes) == lib.ELUTQ_ERROR_ARGUMENT
            assert bytes(ffi.buffer(room)) == bytes(len(state) + 1)
            assert lib.elutq_sequence_export(pointer, 11, 0, ffi.NULL, 0) == lib.ELUTQ_ERROR_ARGUMENT
            assert lib.elutq_sequence_export(pointer, 5, 2**32 - 1, ffi.NULL, 0) == lib.ELUTQ_ERROR_ARGUMENT
            assert lib.elutq_sequence_import(pointer, ffi.NULL, 2**32 - 1, 0) == lib.ELUTQ_ERROR_CONTEXT
            assert lib.elutq_sequence_import(pointer, ffi.NULL, 1, 2) == lib.ELUTQ_ERROR_ARGUMENT


def test_a_state_of_int8_with_a_scale_that_is_not_finite_is_refused(novels_2bit):
    with Model(novels_2bit) as model, model.session(16, 1, "q8") as session:
        session.eval([1] * 4)
        state = session.export_state(0, 4)
        state.reshape(6, 2, 2, 4, 68)[2, 0, 1, 3, 64:].view(np.float32)[0] = np.nan
        with pytest.raises(NativeError, match="not finite"):
            session.import_state(state, 4)
        assert session.position == 4
