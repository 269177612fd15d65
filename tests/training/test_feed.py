import itertools
import os

import pytest
import torch
from small import source

from bluesky_cdinn.errors import InvalidInput, TrainingFailed
from bluesky_cdinn.training.feed import batches, step_generator

CPU = torch.device("cpu")


def taken(count, workers, first=0, seed=0, rank=0, made_by=source):
    feed = batches(made_by, seed, rank, first, workers, CPU)
    found = [batch.magnitude for batch in itertools.islice(feed, count)]
    feed.close()
    return found


def dies_at_the_third(generator):
    if generator.initial_seed() == step_generator(0, 0, 2).initial_seed():
        os._exit(1)
    return source(generator)


def raises(generator):
    raise RuntimeError("no crystal is drawn here")


def test_a_step_has_its_own_numbers_whatever_came_before():
    steps = taken(6, 0)
    assert len({float(step.sum()) for step in steps}) == 6
    for later, step in enumerate(taken(3, 0, first=3), start=3):
        assert torch.equal(step, steps[later])
    for other in (taken(1, 0, seed=1), taken(1, 0, rank=1)):
        assert not torch.equal(other[0], steps[0])


def test_purposes_do_not_share_numbers():
    draws = [torch.rand(1, generator=step_generator(0, 0, 0, purpose=p)).item() for p in range(4)]
    assert len(set(draws)) == 4


def test_workers_make_the_same_steps_in_the_same_order():
    for ours, theirs in zip(taken(5, 0, first=2), taken(5, 2, first=2), strict=True):
        assert torch.equal(ours, theirs)


def test_a_worker_that_dies_ends_training_with_its_reason():
    with pytest.raises(TrainingFailed, match="every worker must live"):
        taken(4, 1, made_by=dies_at_the_third)


def test_what_a_source_raises_in_a_worker_is_told():
    with pytest.raises(RuntimeError, match="no crystal is drawn here"):
        taken(1, 1, made_by=raises)


def test_a_source_that_cannot_be_sent_is_refused():
    with pytest.raises(InvalidInput, match="must pickle"):
        taken(1, 1, made_by=lambda generator: source(generator))
