"""Steps and micro-batches: every row once an epoch, in parts of like length."""

from itertools import chain

import pytest

from helpers.trainings import config_of
from lori.training.batches import plan_micro_batches, plan_steps


def test_an_epoch_has_every_row_once_in_an_order_of_its_own():
    steps = plan_steps(10, config_of("lori-d", batch_size=4, num_epochs=2))
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    first, second = [*chain(*steps[:3])], [*chain(*steps[3:])]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


LENGTHS = [5, 9, 2, 7, 7, 3, 40]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("max_tokens", [1, 15, 1000])
def test_micro_batches_share_a_batch_out_in_parts_of_like_length(num_processes, max_tokens):
    batch = [6, 0, 1, 3, 4, 5]
    shares = [
        plan_micro_batches(LENGTHS, batch, max_tokens=max_tokens, rank=rank, num_processes=num_processes)
        for rank in range(num_processes)
    ]
    assert sorted(row for share in shares for part in share for row in part) == sorted(batch)
    assert len({len(share) for share in shares}) == 1, "collectives need as many parts on every process"
    for share in shares:
        lengths = [LENGTHS[row] for part in share for row in part]
        assert lengths == sorted(lengths, reverse=True)
        assert all(len(part) <= 1 or len(part) * LENGTHS[part[0]] <= max_tokens for part in share)
