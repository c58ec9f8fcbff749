"""Of what two texts begin with in common nothing is computed again."""

import pytest

from elutq_cli.token_prefix import common_length


@pytest.mark.parametrize(
    ("left", "right", "length"),
    [
        ([], [], 0),
        ([], [1], 0),
        ([1, 2, 3], [2, 2, 3], 0),
        ([1, 2, 3], (1, 2, 4), 2),
        ([1, 2, 3], [1, 2], 2),
        ((1, 2, 3), [1, 2, 3], 3),
    ],
)
def test_common_length_is_up_to_the_first_difference_or_the_shorter_end(left, right, length):
    assert common_length(left, right) == length
    assert common_length(right, left) == length
