"""Recipes and the plans that they make of a model."""

from pathlib import Path

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
        with pytest.raises(ElutqError, match=f"groups of 256 .* the {columns} columns of .*: use --group-size 32"):
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
