from pathlib import Path

import pytest
import torch

from bluesky_cdinn.training.atomistic_set import load_set, save_set
from bluesky_cdinn.training.atomistic_source import Views
from bluesky_cdinn.training.measuring import Conditions
from bluesky_cdinn.training.mixture import Mixture
from bluesky_cdinn.training.procedural import Recipe

STORED = Path(__file__).parents[2] / "benchmarks" / "data" / "atomistic_heldout.npz"
IDEAL = Conditions((1e6, 1e6), background=0, blurred=0, gap=0, frames=0, beamstop=0, displaced=0)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "three.npz"
    save_set(load_set(STORED).select([0, 1, 2]), path)
    return path


def drawn(mixture, seed=0):
    return mixture(torch.Generator().manual_seed(seed))


def test_a_batch_follows_from_the_generators_state(stored):
    mixture = Mixture(16, 8, atomistic=stored)
    once, again, other = (drawn(mixture, seed) for seed in (1, 1, 2))
    assert once.magnitude.shape == once.measured.shape == once.truth.shape == (8, 16, 16, 16)
    assert torch.equal(once.magnitude, again.magnitude)
    assert not torch.equal(once.magnitude, other.magnitude)


@pytest.mark.parametrize(("share", "relaxed"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_the_share_of_relaxed_crystals_is_as_asked(stored, share, relaxed):
    # Each kind is told by a phase range that the other never has.
    recipe = Recipe(phase_range_rad=(3.0, 3.1))
    views = Views(phase_range_rad=(0.5, 0.6))
    batch = drawn(Mixture(16, 8, recipe, atomistic=stored, share=share, views=views))
    assert int((batch.facts["phase_range_rad"] < 2).sum()) == 2 * relaxed
    assert len(batch) == 8


def test_a_share_of_less_than_a_crystal_comes_now_and_then(stored):
    recipe, views = Recipe(phase_range_rad=(3.0, 3.1)), Views(phase_range_rad=(0.5, 0.6))
    mixture = Mixture(16, 2, recipe, atomistic=stored, share=0.25, views=views)
    batches = [drawn(mixture, seed) for seed in range(60)]
    assert 6 < sum(bool((batch.facts["phase_range_rad"] < 2).any()) for batch in batches) < 27


def test_without_a_set_all_are_procedural():
    assert len(drawn(Mixture(16, 4, share=1.0))) == 4


def test_each_crystal_is_measured_as_often_as_asked():
    batch = drawn(Mixture(16, 6, conditions=IDEAL, measurements=3))
    for first in (0, 3):
        assert torch.equal(batch.truth[first], batch.truth[first + 1])
        assert not torch.equal(batch.magnitude[first], batch.magnitude[first + 1])
    assert not torch.equal(batch.truth[0], batch.truth[3])


def test_batches_on_larger_grids_come_as_often_as_asked_and_hold_as_many_voxels():
    mixture = Mixture(16, 8, measurements=1, larger=((24, 0.3), (32, 0.2)))
    sides = [drawn(mixture, seed).magnitude.shape for seed in range(60)]
    counts = {side: sum(shape[-1] == side for shape in sides) for side in (16, 24, 32)}
    assert sum(counts.values()) == 60
    assert 20 < counts[16] < 40
    assert 9 < counts[24] < 28
    assert 4 < counts[32] < 22
    assert {shape[0] for shape in sides if shape[-1] == 24} == {2}
    assert {shape[0] for shape in sides if shape[-1] == 32} == {1}
