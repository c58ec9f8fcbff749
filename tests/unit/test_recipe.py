"""Recipes and the plans that they make of a model."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from elutq_cli.pipeline.recipe import Plan, Recipe
from elutq_formats.checkpoint import Checkpoint
from elutq_formats.errors import ElutqError
from elutq_formats.model_tensors import HEAD

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits 5 is not possible: choose 1, 2, 3 or 4"),
        ({"bits": 0}, "bits 0"),
        ({"group_size": 48}, "group size 48 is not possible: choose 32, 64, 128 or 256"),
        ({"output_bits": 8}, "output bits 8 is not possible: choose 1, 2, 3, 4 or 16"),
        ({"embedding_bits": 32}, "embedding bits 32"),
        ({"num_samples": 0}, "number of samples is 0"),
        ({"sequence_length": 1}, "sequence length is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"damping": 0.0}, "damping is 0.0"),
        ({"method": "magic"}, "method magic is not known: choose fit, feedback, refine, correct or allocate"),
    ],
)
def test_impossible_recipes_are_refused(options, message):
    with pytest.raises(ElutqError, match=message):
        Recipe(**options)


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe) if field.name not in ("method", "rotate")])
def test_a_number_is_no_truth_value_and_nothing_that_holds_one(field):
    for value in (True, {"2": 2}, [[2]], b"2"):
        with pytest.raises(ElutqError, match=f"^{field} is .*: it must be "):
            Recipe(**{field: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": "2"}, "bits is '2': it must be a whole number"),
        ({"group_size": None}, "group_size is None: it must be a whole number"),
        ({"scale_bits": "8"}, "scale_bits is '8': it must be a whole number"),
        ({"num_samples": 8.5}, "num_samples is 8.5: it must be a whole number"),
        ({"target_bpw": "2.5"}, "target_bpw is '2.5': it must be a number"),
        ({"rotate": "no"}, "rotate is 'no': it must be True or False"),
        ({"rotate": 1}, "rotate is 1: it must be True or False"),
        ({"method": 3}, "method is 3: it must be a text"),
        ({"tensor_types": "ffn=5"}, "tensor type ffn=5: write REGEX=BITS.*"),
        ({"tune": "all"}, "tuning all is not known: choose block, e2e or block,e2e"),
    ],
)
def test_options_of_a_wrong_type_are_refused_by_name(options, message):
    with pytest.raises(ElutqError, match=f"^{message}$"):
        Recipe(**options)


def test_a_recipe_has_pythons_own_types():
    recipe = Recipe(bits=np.int64(3), group_size=64.0, damping=np.float32(0.5), rotate=np.bool_(True), target_bpw=3)
    assert recipe == Recipe(bits=3, group_size=64, damping=0.5, rotate=True, target_bpw=3.0)
    written = Recipe(bits=3, group_size=64, damping=0.5, rotate=True, target_bpw=3.0).to_json()
    assert recipe.to_json() == written


def test_one_text_or_a_list_is_a_tuple():
    for given in ("e2e", ["e2e"], ("e2e",)):
        assert Recipe(tune=given).tune == ("e2e",)
    for given in ("block,e2e", ["block", "e2e"], ["block,e2e"]):
        assert Recipe(tune=given) == Recipe(tune=("block", "e2e"))
    for given in ("ffn=3", ["ffn=3"]):
        assert Recipe(tensor_types=given) == Recipe(tensor_types=("ffn=3",))
    assert (Recipe(tune="").tune, hash(Recipe(tensor_types=["ffn=3"]))) == ((), hash(Recipe(tensor_types="ffn=3")))


def test_plan_of_a_tied_head():
    with Checkpoint.open(GOLDEN / "llama32-tied-head-dim") as checkpoint:
        assert Plan.make(checkpoint.config, Recipe(group_size=32)).head is None
        apart = Plan.make(checkpoint.config, Recipe(group_size=32, output_bits=16)).head
        assert (apart.name, apart.layout) == (HEAD, None)
    with Checkpoint.open(GOLDEN / "llama1-mha") as checkpoint:
        plan = Plan.make(checkpoint.config, Recipe(group_size=32))
        assert plan.head is not None
        assert len(plan.blocks) == checkpoint.config.num_hidden_layers
        shapes = checkpoint.config.tensor_shapes()
        matrices = {name for name, shape in shapes.items() if len(shape) == 2}
        assert {entry.name for entry in plan.matrices()} == matrices


def test_groups_that_do_not_fit_are_told_with_the_option_that_chose_them():
    with Checkpoint.open(GOLDEN / "llama1-mha") as checkpoint:
        columns = checkpoint.config.hidden_size
        with pytest.raises(ElutqError, match=f"groups of 256 .* the {columns} columns of .*: use groups of 32"):
            Plan.make(checkpoint.config, Recipe(group_size=256))
        with pytest.raises(ElutqError, match=rf"the {columns} columns of .*o_proj.*: use g\d+ in its tensor type"):
            Plan.make(checkpoint.config, Recipe(group_size=32, tensor_types=("attn_output=2g256",)))


def test_a_plan_within_a_total_has_bits_that_reach_it():
    expected = {1.2: 1, 1.25: 1, 2.375: 2, 2.4: 3, 4.5: 4, 6.0: 4}
    assert {total: Recipe(target_bpw=total).expected_bits for total in expected} == expected
    assert Recipe(bits=3).expected_bits == 3


def test_fit_takes_no_damping():
    with pytest.raises(ElutqError, match="takes no damping"):
        Recipe(method="fit", damping=0.01).resolved(calibrated=True)
