"""The package `elutq`: what it exports, and the forms that prompts and options may have."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

import elutq
from elutq_cli.generation import language_model
from elutq_cli.generation.context_size import ContextOverflowError
from elutq_cli.options import OptionError
from elutq_native import ContextFullError

PROMPT = "It was a dark night, and"


@pytest.fixture(scope="module")
def model(novels_2bit):
    with elutq.load(novels_2bit, ctx_size=256, threads=1) as opened:
        yield opened


def test_everything_that_is_exported_is_there():
    assert {"load", "generate", "quantize", "Recipe", "ElutqError", "NativeError"} <= set(elutq.__all__)
    assert all(hasattr(elutq, name) for name in elutq.__all__)
    assert issubclass(elutq.CheckpointError, elutq.ElutqError)


def test_the_command_loads_no_numpy_before_it_has_set_the_threads_of_its_blas():
    code = "import sys, elutq_cli.app; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


LOADING = """
class Interrupt:
    def find_spec(self, name, *_):
        if name == 'elutq_cli.commands.run': raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
"""
BUILDING = """
import typer.main
def interrupt(*_): raise KeyboardInterrupt
typer.main.get_command = interrupt
"""


@pytest.mark.parametrize("when", [LOADING, BUILDING], ids=["loading", "building"])
def test_ctrl_c_before_a_command_runs(when):
    code = f"import sys, elutq_cli.__main__ as entry\n{when}\nentry.main()\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "elutq: interrupted\n")


def test_a_model_that_memory_cannot_hold_is_warned_of(novels_2bit, monkeypatch, caplog):
    for memory, warned in ((novels_2bit.stat().st_size, True), (10**9, False), (None, False)):
        monkeypatch.setattr(language_model, "available_memory", lambda memory=memory: memory)
        caplog.clear()
        elutq.load(novels_2bit, ctx_size=64, threads=1).close()
        assert ("use a smaller context (-c) or a smaller model" in caplog.text) == warned


def test_errors_come_through_to_another_process():
    errors = [OptionError("top_p", "is 2", "top-p"), ContextOverflowError(9, 5, 7, at_least=True)]
    errors += [kind(3, "it failed", bad_input=True) for kind in (elutq.NativeError, ContextFullError)]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_options_have_the_names_of_other_packages_too(model):
    ours = elutq.generate(model, PROMPT, 6, temp=0)
    model.clear()
    assert elutq.generate(model, PROMPT, max_tokens=6, temperature=0).read() == ours.read()
    with pytest.raises(elutq.ElutqError, match="temp and temperature are the same: give one of them"):
        elutq.generate(model, PROMPT, temp=0, temperature=0.5)
    with pytest.raises(elutq.ElutqError, match="n_predict and max_tokens are the same"):
        elutq.generate(model, PROMPT, 6, max_tokens=6)


def test_a_list_of_texts_makes_a_text_of_each(model):
    texts = [generation.read() for generation in elutq.generate(model, [PROMPT, "My dear"], 5, temp=0)]
    alone = []
    for prompt in (PROMPT, "My dear"):
        model.clear()
        alone.append(elutq.generate(model, prompt, 5, temp=0).read())
    assert texts == alone


def test_a_list_of_no_texts_makes_none(model):
    assert elutq.generate(model, [], 5) == []
    with pytest.raises(OptionError, match=r"^temp is 'hot'"):
        elutq.generate(model, [], temp="hot")


def test_a_list_of_texts_is_made_together_where_there_are_slots(novels_2bit):
    prompts = [PROMPT, "My dear", "The captain said that", "On the third day"]
    with elutq.load(novels_2bit, ctx_size=256, threads=1, parallel=3) as model:
        alone = []
        for prompt in prompts:
            model.clear()
            alone.append(elutq.generate(model, prompt, 8, seed=4, ignore_eos=True).read())
        model.clear()
        engine, passes = model.scheduler.engine, []
        evaluate = engine.eval
        engine.eval = lambda runs: (passes.append(len(runs)), evaluate(runs))[1]
        texts = elutq.generate(model, prompts, 8, seed=4, ignore_eos=True)
        assert passes == []
        assert [generation.read() for generation in texts] == alone
        assert passes == [3] * 8 + [1] * 8
        # A text of its own goes before those that nobody asks for.
        waiting = elutq.generate(model, prompts, 8)
        next(waiting[0])
        passes.clear()
        elutq.generate(model, PROMPT, 4, ignore_eos=True).read()
        assert passes == [1] * 4
        assert waiting[3].read() and waiting[0].read()


@pytest.mark.parametrize("parallel", [0, 1025])
def test_a_number_of_slots_out_of_range(novels_2bit, parallel):
    with pytest.raises(elutq.ElutqError, match=f"parallel is {parallel}: it must be between 1 and 1024"):
        elutq.load(novels_2bit, parallel=parallel)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32])
def test_token_ids_may_be_numpys(model, dtype):
    ids = model.encode(PROMPT)
    expected = elutq.generate(model, ids, 5, temp=0).read()
    for prompt in (np.array(ids, dtype=dtype), list(np.array(ids, dtype=dtype))):
        model.clear()
        assert elutq.generate(model, prompt, 5, temp=0).read() == expected


@pytest.mark.parametrize(
    "prompt", [np.ones((2, 3), np.int64), np.ones(3), ["a", 1], [1.0], [None], None, 7, b"a", [True]]
)
def test_what_is_no_prompt_is_told(model, prompt):
    with pytest.raises(elutq.ElutqError, match="a prompt is a text, a sequence of token ids, or a list of messages"):
        elutq.generate(model, prompt)


def test_a_seed_of_minus_one_is_a_new_one_each_time(model):
    seeds = {elutq.generate(model, PROMPT, 1, seed=-1).seed for _ in range(4)}
    assert len(seeds) == 4
    assert elutq.generate(model, PROMPT, 1, seed=7).seed == 7
    with pytest.raises(elutq.ElutqError, match="seed is -2"):
        elutq.generate(model, PROMPT, 1, seed=-2)


@pytest.mark.parametrize("token", [-1, 4096, 2**40])
def test_a_token_that_the_model_has_not_is_told_before_anything_is_computed(model, token):
    with pytest.raises(elutq.ElutqError, match=f"the prompt has token {token}, and the model's are 0 to 4095"):
        elutq.generate(model, [5, token])


def test_one_stop_string_needs_no_list(model):
    whole = elutq.generate(model, PROMPT, 24, temp=0).read()
    stop = whole[10:14]
    for given in (stop, [stop], (stop,)):
        model.clear()
        assert elutq.generate(model, PROMPT, 24, temp=0, stop=given).read() == whole.partition(stop)[0]


@pytest.mark.parametrize("name", ["max_tokens", "min_tokens"])
def test_a_number_of_tokens_is_whole(model, name):
    assert len(elutq.generate(model, PROMPT, max_tokens=2.0).read()) > 0
    for value in (1.5, float("nan")):
        with pytest.raises(elutq.ElutqError, match="it must be a whole number"):
            elutq.generate(model, PROMPT, **{name: value})


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("temp", "hot", "a number"),
        ("top_p", True, "a number"),
        ("top_k", "40", "a whole number"),
        ("seed", 1.5, "a whole number"),
        ("repeat_last_n", float("inf"), "a whole number"),
        ("frequency_penalty", 10**400, "a number"),
        ("ignore_eos", "no", "True or False"),
        ("logprobs", [1], "a whole number"),
        ("stop", 5, "a text or several"),
        ("stop", ["a", 5], "a text or several"),
        ("stop_token_ids", ["5"], "whole numbers"),
        ("stop_token_ids", 5, "whole numbers"),
        ("logit_bias", {"five": 1}, "token ids and a number for each"),
        ("logit_bias", {5: "1"}, "token ids and a number for each"),
        ("logit_bias", [5], "token ids and a number for each"),
    ],
)
def test_an_option_of_a_wrong_type_is_named(model, option, value, what):
    with pytest.raises(OptionError, match=f"^{option} is .*: it must be {what}$") as caught:
        elutq.generate(model, PROMPT, **{option: value})
    assert caught.value.option == option


def test_digits_name_a_token_as_in_json(model):
    texts = []
    for bias in ({300: 100}, {"300": 100}, {np.int64(300): np.float32(100)}):
        model.clear()
        texts.append(elutq.generate(model, PROMPT, 3, temp=0, logit_bias=bias))
    assert all(text.read() and text.tokens == [300] * 3 for text in texts)


@pytest.mark.parametrize("name", ["ctx_size", "threads", "parallel"])
def test_a_number_that_is_none_is_told_before_a_model_is_opened(novels_2bit, name):
    with pytest.raises(OptionError, match=f"^{name} is '2': it must be a whole number$"):
        elutq.load(novels_2bit, **{name: "2"})


def test_what_quantize_cannot_use_is_told(tmp_path):
    for recipe in ({"bits": 2}, {}, "2"):
        with pytest.raises(elutq.ElutqError, match=f"the recipe is of type {type(recipe).__name__}: give an elutq.Rec"):
            elutq.quantize("checkpoint", tmp_path / "out.gguf", recipe)
    for name, what in (("threads", "a whole number"), ("max_memory", "a number")):
        with pytest.raises(elutq.ElutqError, match=f"^{name} is '2': it must be {what}$"):
            elutq.quantize("checkpoint", tmp_path / "out.gguf", **{name: "2"})


@pytest.mark.parametrize("threads", [0, -1])
def test_a_number_of_threads_is_at_least_one(novels_2bit, threads, tmp_path):
    with pytest.raises(elutq.ElutqError, match=f"threads is {threads}: it must be at least 1"):
        elutq.load(novels_2bit, threads=threads)
    with pytest.raises(elutq.NativeError, match=f"{threads} threads are not possible: use 1 to 256"):
        elutq.quantize("checkpoint", tmp_path / "out.gguf", threads=threads)
