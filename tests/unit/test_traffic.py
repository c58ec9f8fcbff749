"""What travels for a block: the formula beside what the stages send, and no array twice."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from elsewhere import Elsewhere, copied, driver_of
from safetensors.numpy import save_file

from elutq_cli.pipeline.compute import divided
from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.compute.shipping import Shelf, pack_unit
from elutq_cli.pipeline.recipe import Plan, Recipe
from elutq_cli.pipeline.run.calibrated_block import CalibratedBlock
from elutq_cli.pipeline.run.calibration_text import CalibrationText
from elutq_cli.pipeline.run.quantize import quantize
from elutq_cli.pipeline.run.traffic import Traffic, block_traffic, embedding_traffic
from elutq_cli.shapes import named_shape
from elutq_formats.checkpoint import Checkpoint

DATA = Path(__file__).parent.parent / "data"
NOVELS, SAMPLED = DATA / "novels-6m", DATA / "sampled.txt"
WIDTHS = {"hidden_size": 512, "intermediate_size": 1280, "num_hidden_layers": 1, "tie_word_embeddings": True}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A block whose every matrix and batch is large enough to be sent by itself."""
    folder = tmp_path_factory.mktemp("wide")
    shutil.copy(NOVELS / "tokenizer.json", folder)
    config = json.loads((NOVELS / "config.json").read_text()) | WIDTHS | HEADS
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens": (config["vocab_size"], 512),
        "model.norm": (512,),
        "model.layers.0.input_layernorm": (512,),
        "model.layers.0.post_attention_layernorm": (512,),
        "model.layers.0.self_attn.q_proj": (512, 512),
        "model.layers.0.self_attn.k_proj": (256, 512),
        "model.layers.0.self_attn.v_proj": (256, 512),
        "model.layers.0.self_attn.o_proj": (512, 512),
        "model.layers.0.mlp.gate_proj": (1280, 512),
        "model.layers.0.mlp.up_proj": (1280, 512),
        "model.layers.0.mlp.down_proj": (512, 1280),
    }
    draw = {name + ".weight": rng.normal(0.0, 0.04, shape).astype(np.float32) for name, shape in shapes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(draw, folder / "model.safetensors")
    return folder


class Counting(Elsewhere):
    """Knows the contents of what it is sent, and how much comes back."""

    def __init__(self, backend, workers, threads):
        super().__init__(backend, workers, threads)
        self.contents, self.returned_bytes = [], 0
        self.shelf = Shelf(self.noted)

    def noted(self, array):
        self.contents.append(hashlib.sha256(array.tobytes() + str(array.shape).encode()).hexdigest())
        return copied(array)

    def map(self, function, items, at_once=1):
        for result in super().map(function, items, at_once):
            self.returned_bytes += sum(array.nbytes for array in pack_unit(type, result)[1])
            yield result


@pytest.mark.parametrize("method", ["fit", "refine", "correct"])
@pytest.mark.parametrize(("workers", "threads"), [(2, 64), (7, 64), (2, 1)])
def test_a_block_sends_what_the_formula_says_and_nothing_twice(wide, tmp_path, monkeypatch, method, workers, threads):
    monkeypatch.setattr(divided, "DIVIDED_ROWS", 256)
    recipe = Recipe(bits=2, group_size=64, num_samples=24, sequence_length=128, method=method)
    before, after, quantize_block = {}, {}, CalibratedBlock.quantize

    def counted(block):
        before.update(sent=there.shelf.shipped_bytes, returned=there.returned_bytes, n=len(there.contents))
        quantize_block(block)
        after.update(sent=there.shelf.shipped_bytes, returned=there.returned_bytes, n=len(there.contents))

    monkeypatch.setattr(CalibratedBlock, "quantize", counted)
    with native_backend(2) as here, native_backend(1) as other, Checkpoint.open(wide) as source:
        there = Counting(other, workers, threads)
        text = CalibrationText.read([SAMPLED], source, recipe)
        driver = driver_of(here, there)
        quantize(source, tmp_path / "out.gguf", recipe, text, driver)
        held_out = 0 if text.held_out is None else text.held_out.size
        expected = block_traffic(source.config, 0, recipe, text.tokens.size, driver.light.workers, held_out)
        assert driver.light.workers == (1 if threads == 1 else workers)
        plan = Plan.make(source.config, recipe)
        first = embedding_traffic(source.config, plan, recipe, text.tokens.size, driver.light.workers)
    found = {name: after[name] - before[name] for name in before}
    print(
        f"sent {found['sent'] / 1e6:.1f} MB of {expected.sent / 1e6:.1f} foretold, "
        f"returned {found['returned'] / 1e6:.1f} of {expected.returned / 1e6:.1f}"
    )
    assert plan.head_is_embedding
    assert before["sent"] == pytest.approx(first.sent, rel=0.2)
    assert before["returned"] == pytest.approx(first.returned, rel=0.2)
    assert found["sent"] == pytest.approx(expected.sent, rel=0.2)
    assert found["returned"] == pytest.approx(expected.returned, rel=0.2)
    sent = there.contents[before["n"] : after["n"]]
    assert len(set(sent)) == len(sent)


def test_a_node_more_takes_only_what_all_need():
    shape, recipe = named_shape("llama3-8b"), Recipe(method="correct")
    of = [block_traffic(shape, 0, recipe, 16 * 512, workers) for workers in (16, 64)]
    assert of[0].to_all == of[1].to_all
    assert of[0].carried(17) - of[0].carried(16) == of[0].to_all


def test_traffic_adds_up():
    both = Traffic(1.0, 2.0, 3.0, 4, 5.0) + Traffic(10.0, 20.0, 30.0, 2, 50.0)
    assert both == Traffic(11.0, 22.0, 33.0, 4, 55.0)
    assert both.sent == 66.0
    assert both.carried(3) == 3 * 11.0 + 22.0 + 3 * 33.0 + 55.0
    assert both.carried(9) == 9 * 11.0 + 22.0 + 4 * 33.0 + 55.0
