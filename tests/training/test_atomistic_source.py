import numpy as np
import pytest
import torch

from bluesky_cdinn.training.atomistic import MATERIALS, Recipe, build
from bluesky_cdinn.training.atomistic_set import AtomisticSet, as_set
from bluesky_cdinn.training.atomistic_source import Shelf, Views, _winding, atomistic_crystals
from bluesky_cdinn.training.displacement import Grid, coarse_grained
from bluesky_cdinn.training.procedural import fine_side

SIDE, COUNT = 24, 6
VIEWS = Views(phase_range_rad=(0.5, 2.5), oversampling=(2.0, 3.5))


def crystals() -> AtomisticSet:
    parts = []
    for seed, defect in enumerate(("none", "edge", "screw", "vacancies")):
        atoms = build(Recipe(seed, atoms=4000, hold="free", defect=defect, twist=0.01))
        shift = atoms.positions_nm - atoms.sites_nm
        if atoms.dislocation:
            shift = shift - atoms.dislocation.displacement(atoms.sites_nm)
        cell = MATERIALS["gold"].lattice_nm
        field = coarse_grained(atoms.positions_nm, shift, cell, Grid.around(atoms.positions_nm, 24))
        parts.append(as_set(Recipe(seed), field, atoms.dislocation))
    names = ("occupancy", "displacement_nm", "voxel_nm", "corner_nm", "dislocation")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return AtomisticSet(**arrays, recipes=tuple(part.recipes[0] for part in parts))


@pytest.fixture(scope="module")
def stored() -> AtomisticSet:
    return crystals()


@pytest.fixture(scope="module")
def shelf(stored) -> Shelf:
    return Shelf.of(stored)


def views(shelf: Shelf, seed: int = 0, items: list[int] | None = None):
    generator = torch.Generator().manual_seed(seed)
    chosen = None if items is None else torch.tensor(items)
    return atomistic_crystals(shelf, COUNT, SIDE, generator, VIEWS, chosen)


def test_same_state_gives_the_same_views(shelf):
    first, second, other = views(shelf, 1), views(shelf, 1), views(shelf, 2)
    assert torch.equal(first.density, second.density)
    assert not torch.equal(first.density, other.density)


def test_views_are_whole_crystals_centred_on_their_mass(shelf):
    density = views(shelf).density
    n = fine_side(SIDE)
    assert density.shape == (COUNT, n, n, n)
    assert density.dtype == torch.complex64
    amplitude = density.abs()
    assert amplitude.amax().item() == pytest.approx(1, abs=1e-5)
    # Most of what is filled is filled wholly.
    assert ((amplitude > 0.99).sum() / (amplitude > 0.01).sum()).item() > 0.5
    for axis in (1, 2, 3):
        others = tuple(a for a in (1, 2, 3) if a != axis)
        profile = amplitude.sum(others)
        centre = (profile * torch.arange(n)).sum(1) / profile.sum(1)
        torch.testing.assert_close(centre, torch.full((COUNT,), n // 2.0), atol=0.2, rtol=0)


def test_crystals_fill_the_box_as_the_oversampling_says(shelf):
    made = views(shelf)
    n = fine_side(SIDE)
    inside = made.density.abs() > 0.5
    extents = torch.stack([inside.any(dim=a).any(dim=b).sum(1) for a, b in ((3, 2), (3, 1), (2, 1))], 1)
    found = n / extents.amax(1)
    torch.testing.assert_close(found, made.oversampling, atol=0, rtol=0.1)
    # Nothing is cut off by the part of the grid that is drawn.
    edge = n // 2 - round(0.3 * n)
    assert made.density.abs()[:, edge].amax() == 0


def test_phases_have_the_range_asked_and_no_ramp(shelf):
    made = views(shelf, items=[0, 3] * (COUNT // 2))
    for density, wanted in zip(made.density, made.phase_range_rad, strict=True):
        inside = density.abs() > 0.5
        phase = density.angle()[inside]
        places = torch.nonzero(inside).float()
        low, high = torch.quantile(phase, torch.tensor([0.005, 0.995]))
        assert (high - low).item() == pytest.approx(wanted.item(), rel=0.15)
        basis = torch.cat([torch.ones(len(places), 1), places - places.mean(0)], 1)
        slope = torch.linalg.lstsq(basis, phase[:, None]).solution[:, 0]
        # Over the whole crystal, on a grid of another orientation than that it was fitted on.
        assert (slope[1:].abs() * (places.amax(0) - places.amin(0))).max() < 0.06 * wanted
        assert slope[0].abs() < 0.05 * wanted


def test_winding_is_that_of_the_stored_crystal(stored, shelf):
    points = torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0))
    wavevector = torch.tensor([[3.0, -1.0, 2.0]]).expand(4, 3)
    found = _winding(shelf.dislocation, points, wavevector).numpy()
    for item in range(4):
        line = stored.dislocation_of(item)
        expected = (
            np.zeros(50)
            if line is None
            else line.displacement(points[item].numpy()) @ wavevector[item].numpy()
        )
        np.testing.assert_allclose(found[item], expected, atol=1e-4)


def test_phase_of_a_view_is_that_of_the_stored_density(stored):
    """Unturned and unscaled a view shows the displacement that is stored."""
    shelf = Shelf.of(stored.select([0]))
    wavevector = torch.tensor([[1.0, 1.0, 1.0]]) * 2 * torch.pi / shelf.lattice_nm
    phase = torch.einsum("bc,bcxyz->bxyz", wavevector, shelf.displacement_nm)[0].numpy()
    expected = np.angle(stored.density(0, (1, 1, 1)))
    deep = stored.occupancy[0] > 190
    assert np.sqrt(((phase - expected)[deep] ** 2).mean()) < 0.1 * expected[deep].std()
