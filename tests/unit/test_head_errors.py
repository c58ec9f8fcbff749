"""The head among the matrices that bits are chosen for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elutq_cli.evaluation import log_softmax
from elutq_cli.pipeline.compute.backend import native_backend
from elutq_cli.pipeline.layout import FREE8, Layout
from elutq_cli.pipeline.recipe import OUTER_BITS, Plan, Recipe
from elutq_cli.pipeline.stages.allocate import allocate, head_to_choose, measure_candidates
from elutq_cli.pipeline.stages.feedback import feedback, inverse_factor
from elutq_cli.reference import Transformer
from elutq_cli.reference.transformer import rms_norm
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.model_tensors import EMBEDDING, FINAL_NORM, HEAD

DATA = Path(__file__).parent.parent / "data"
UNTIED, TIED, NOVELS = DATA / "golden" / "llama2-gqa-sharded", DATA / "golden" / "smollm-tied", DATA / "novels-6m"
RECIPE = Recipe(bits=2, group_size=32, num_samples=6, sequence_length=16, method="allocate")


@pytest.fixture(scope="module")
def backend():
    with native_backend(2) as native:
        yield native


def tokens_of(checkpoint, count=16):
    return np.random.default_rng(1).integers(0, checkpoint.config.vocab_size, (count, 16))


@pytest.mark.parametrize("folder", [UNTIED, TIED], ids=lambda folder: folder.name)
def test_its_harm_is_the_divergence_when_it_alone_is_quantized(backend, folder):
    """To second order, from sampled gradients and rows: to a quarter."""
    with Checkpoint.open(folder) as checkpoint:
        tokens, config = tokens_of(checkpoint), checkpoint.config
        name = EMBEDDING if config.tie_word_embeddings else HEAD
        [found] = measure_candidates(checkpoint, RECIPE, {name}, tokens, backend)
        model, changed = Transformer(checkpoint, keep=True), Transformer(checkpoint, keep=True)
        expected = [log_softmax(model.logits(row)) for row in tokens]
        norm = checkpoint.load(FINAL_NORM)
        x = rms_norm(model.hidden(tokens), norm, config.rms_norm_eps, np).reshape(-1, config.hidden_size)
        factor = inverse_factor(x.T @ x / np.float32(len(x)), RECIPE.damping, backend)
        weights = checkpoint.load(name)
        layout, kind = Layout(3, 32, FREE8).settle([weights])
        changed._kept[name] = feedback(weights, factor, layout, backend, kind).dequantize()
        other = [log_softmax(changed.logits(row)) for row in tokens]
    divergence = np.mean([(np.exp(p) * (p - q)).sum(-1).mean() for p, q in zip(expected, other, strict=True)])
    assert found.name == name
    assert found.n_weights == weights.size
    print(found.harms[layout], divergence)
    assert found.harms[layout] == pytest.approx(divergence, rel=0.25)


def test_it_shares_the_budget_and_the_total_is_kept(backend):
    with Checkpoint.open(NOVELS) as checkpoint:
        config, recipe = checkpoint.config, replace(RECIPE, group_size=64)
        chosen = allocate(checkpoint, recipe, tokens_of(checkpoint, 6), backend)
        plan = Plan.make(config, recipe, chosen)
        shapes = config.tensor_shapes()
    assert plan.head_is_embedding
    outer = recipe.layout(OUTER_BITS)
    assert chosen[EMBEDDING] == chosen[HEAD] != outer
    entries = [entry for block in plan.blocks for entry in block]
    n_linears = sum(np.prod(shapes[entry.name]) for entry in entries)
    n_head = np.prod(shapes[EMBEDDING])
    budget = recipe.budget * n_linears + outer.bits_per_weight * n_head
    taken = sum(entry.bits_per_weight * np.prod(shapes[entry.name]) for entry in (plan.embedding, *entries))
    assert 0.98 * budget < taken <= budget


@pytest.mark.parametrize(
    ("folder", "options", "name"),
    [
        (UNTIED, {}, HEAD),
        (UNTIED, {"embedding_bits": 3}, HEAD),
        (UNTIED, {"output_bits": 4}, None),
        (UNTIED, {"target_bpw": 2.5}, None),
        (UNTIED, {"tensor_types": ("output=3",)}, None),
        (TIED, {}, EMBEDDING),
        (TIED, {"embedding_bits": 4}, None),
        (TIED, {"output_bits": 4}, None),
        (TIED, {"tensor_types": ("output=3",)}, None),
        (TIED, {"tensor_types": ("token_embd=3",)}, None),
        (TIED, {"tensor_types": ("ffn=3",)}, EMBEDDING),
    ],
)
def test_what_is_asked_for_it_is_not_chosen(folder, options, name):
    with Checkpoint.open(folder) as checkpoint:
        assert head_to_choose(checkpoint.config, replace(RECIPE, **options)) == name


def test_without_a_choice_it_has_four_bits():
    for recipe in (Recipe(), Recipe(method="correct").resolved(True), Recipe(method="allocate").resolved(True)):
        with Checkpoint.open(UNTIED) as checkpoint:
            plan = Plan.make(checkpoint.config, replace(recipe, group_size=32))
        assert plan.head.layout.bits == plan.embedding.layout.bits == OUTER_BITS
