"""Of what two texts begin with in common nothing is computed again."""

import random

import pytest

from elutq_cli.token_prefix import STEP, common_length


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


@pytest.mark.parametrize("kinds", [(list, list), (tuple, list), (tuple, tuple)])
def test_common_length_of_long_texts_ends_where_tokens_differ(kinds):
    chance = random.Random(1)
    for n_common in (0, 1, STEP - 1, STEP, STEP + 1, 2 * STEP, 3 * STEP + 7):
        begin = [chance.randrange(50) for _ in range(n_common)]
        for left_more, right_more in (([], []), ([1], []), ([], [2, 3]), ([1, 5], [2, 5]), ([1] * STEP, [2] * STEP)):
            left, right = (kind(begin + more) for kind, more in zip(kinds, (left_more, right_more), strict=True))
            assert common_length(left, right) == common_length(right, left) == n_common
