"""Simulated samples: many grains on a stage, and a crystal that changes while it is measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.geometry import scattering_vectors
from bluesky_cdinn.records import Geometry
from bluesky_cdinn.sim.area_detector import SimulatedAreaDetector
from bluesky_cdinn.sim.crystal import Crystal, random_crystal
from bluesky_cdinn.sim.detector_effects import DetectorModel, random_detector
from bluesky_cdinn.sim.devices import gold_geometry
from bluesky_cdinn.sim.diffraction import Diffraction
from bluesky_cdinn.sim.stage import RockingStage

# What a grain gets of the beam, below which it isn't seen.
_UNSEEN = 1e-4


@dataclass(frozen=True, eq=False)
class Grain:
    """A crystal somewhere on a sample.

    Parameters
    ----------
    name
        Of the grain.
    crystal
        In the lab frame where it stands at `centre_deg`.
    place_um
        Where it lies on the sample, (x, y).
    centre_deg
        Rocking angle at which it is in the Bragg condition.
    shift_px
        (row, column) from the detector's middle to its peak.
    peak_rate
        Counts a second in a pixel on the peak's maximum, in the middle of the beam.
    """

    name: str
    crystal: Crystal
    place_um: tuple[float, float]
    centre_deg: float = 0.0
    shift_px: tuple[float, float] = (0.0, 0.0)
    peak_rate: float = 1e5


class GrainsInBeam:
    """The diffraction of whatever grains are in the beam, added up and counted by one detector.

    Parameters
    ----------
    grains
        On the sample.
    geometry
        Of the measurement, with the detector at zero.
    detector
        And its faults.
    stage
        Where the sample stands, (x, y), um: a grain is in the beam where the stage stands at its place.
    arm
        Where the detector stands, (row, column), mm: moved along its rows or columns, it sees the peak at
        smaller ones. None leaves it at zero.
    beam_um
        Full width of the beam at half maximum.
    seed
        Of the photons.
    """

    def __init__(
        self,
        grains: Sequence[Grain],
        geometry: Geometry,
        detector: DetectorModel,
        stage: tuple[RockingStage, RockingStage],
        arm: tuple[RockingStage, RockingStage] | None = None,
        *,
        beam_um: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.grains = tuple(grains)
        self.detector = detector
        self.shape = detector.shape
        self.dtype = np.dtype(detector.dtype)
        self._geometry = geometry
        self._stage, self._arm = stage, arm
        self._beam_um = beam_um
        self._rng = np.random.default_rng(seed)
        self._seen: dict[tuple[str, tuple[float, float]], Diffraction] = {}

    @property
    def geometry(self) -> Geometry:
        """How beam, crystal and detector stand; where the arm's axis meets the detector moves with it."""
        row, column = self._geometry.beam_centre_px
        moved_row, moved_column = self._moved_px()
        return replace(self._geometry, beam_centre_px=(row - moved_row, column - moved_column))

    def frame(self, angle_deg: float, count_time_s: float) -> NDArray[np.integer]:
        """Return the counts of one exposure with the rocking stage there."""
        expected = np.zeros(self.shape)
        for grain in self.grains:
            share = self._share(grain)
            if share > _UNSEEN:
                pattern = self._diffraction(grain).frame(angle_deg - grain.centre_deg)
                expected += pattern * (share * grain.peak_rate * count_time_s)
        return self.detector.expose(expected, self._rng, count_time_s)

    def _share(self, grain: Grain) -> float:
        """Return what a grain gets of the beam's intensity."""
        x, y = (axis.position for axis in self._stage)
        distance = np.hypot(x - grain.place_um[0], y - grain.place_um[1])
        return float(0.5 ** ((2 * distance / self._beam_um) ** 2))

    def _diffraction(self, grain: Grain) -> Diffraction:
        key = grain.name, self._moved_px()
        if key not in self._seen:
            row, column = (b + s for b, s in zip(self._geometry.beam_centre_px, grain.shift_px, strict=True))
            places = np.array([[row]]), np.array([[column]])
            bragg = scattering_vectors(self._geometry, np.zeros(1), *places).reshape(3)
            self._seen[key] = Diffraction(grain.crystal, self.geometry, self.shape, bragg=bragg)
        return self._seen[key]

    def _moved_px(self) -> tuple[float, float]:
        if self._arm is None:
            return 0.0, 0.0
        row, column = (
            1e3 * axis.position / pixel_um
            for axis, pixel_um in zip(self._arm, self._geometry.pixel_size_um, strict=True)
        )
        return row, column


@dataclass(frozen=True, eq=False)
class SampleBeamline:
    """A detector, a rocking stage, the stage of a sample with grains on it, and the detector's own.

    Parameters
    ----------
    det, theta
        Detector and rocking stage.
    x, y
        The sample's stage, um.
    det_row, det_column
        Motors that move the detector along its rows and columns, mm.
    grains
        What there is to find.
    """

    det: SimulatedAreaDetector
    theta: RockingStage
    x: RockingStage
    y: RockingStage
    det_row: RockingStage
    det_column: RockingStage
    grains: tuple[Grain, ...] = field(default=())


def sample_beamline(
    grains: Sequence[Grain],
    *,
    geometry: Geometry | None = None,
    detector: DetectorModel | None = None,
    beam_um: float = 1.0,
    time_scale: float = 0.0,
    seed: int = 0,
    cdi: Mapping[str, Any] | None = None,
) -> SampleBeamline:
    """Return a simulated beamline with a sample of grains in it.

    Parameters
    ----------
    grains
        On the sample; see `random_grains`.
    geometry, detector
        None takes gold's, and 128 x 128 pixels with a few faults.
    beam_um, seed
        As in `GrainsInBeam`.
    time_scale
        Real seconds for each second of exposure and motion; 0 goes as fast as it can.
    cdi
        More that is known of the sample.
    """
    if detector is None:
        detector = random_detector(np.random.default_rng([seed, 1]), (128, 128), gap=False)
    if geometry is None:
        geometry = gold_geometry(detector.shape)

    def stage(name: str, reach: float, egu: str) -> RockingStage:
        return RockingStage(
            name=name, limits_deg=(-reach, reach), velocity_deg_s=reach, time_scale=time_scale, egu=egu
        )

    theta = RockingStage(name="theta", time_scale=time_scale)
    x, y = stage("x", 500.0, "um"), stage("y", 500.0, "um")
    det_row, det_column = stage("det_row", 20.0, "mm"), stage("det_column", 20.0, "mm")
    source = GrainsInBeam(
        grains, geometry, detector, (x, y), (det_row, det_column), beam_um=beam_um, seed=seed
    )
    det = SimulatedAreaDetector(
        name="det",
        source=source,
        stage=theta,
        time_scale=time_scale,
        cdi={"sample": f"simulated grains {seed}", **(cdi or {})},
    )
    return SampleBeamline(det, theta, x, y, det_row, det_column, tuple(grains))


def random_grains(
    rng: np.random.Generator,
    columns: int,
    rows: int,
    *,
    pitch_um: float = 10.0,
    side_px: int = 128,
    empty: int = 1,
    weak: int = 1,
    cut: int = 1,
    twice: int = 1,
) -> list[Grain]:
    """Return grains on a grid of places, some of them of no use.

    Sizes are 250 to 450 nm, strain fields 0.5 to 8 rad peak to valley, rates go with the size to the fourth
    power; each is turned by up to 0.15 deg and has its peak up to an eighth of a side from the middle.

    Parameters
    ----------
    rng
        Makes the choices.
    columns, rows
        Of the grid, whose first place is (0, 0); names are "x0y0", ...
    pitch_um
        From place to place.
    side_px
        Of the detector.
    empty, weak, cut, twice
        How many places have no crystal, one a thousand times as weak, one with its peak at the detector's
        edge, and two crystals at once.
    """
    places = [(column, row) for row in range(rows) for column in range(columns)]
    kinds = ["empty"] * empty + ["weak"] * weak + ["cut"] * cut + ["twice"] * twice
    kinds += ["good"] * (len(places) - len(kinds))
    grains = []
    for (column, row), kind in zip(places, rng.permutation(kinds), strict=True):
        name, place = f"x{column}y{row}", (column * pitch_um, row * pitch_um)
        first = _random_grain(rng, name, place, side_px)
        if kind == "weak":
            first = replace(first, peak_rate=first.peak_rate / 1000)
        elif kind == "cut":
            first = replace(first, shift_px=(side_px / 2, first.shift_px[1]))
        if kind != "empty":
            grains.append(first)
        if kind == "twice":
            other = _random_grain(rng, f"{name} other", place, side_px)
            row_px, column_px = first.shift_px + 0.22 * side_px * rng.choice([-1, 1], 2)
            grains.append(replace(other, shift_px=(row_px, column_px), peak_rate=first.peak_rate * 0.7))
    return grains


def _random_grain(rng: np.random.Generator, name: str, place_um: tuple[float, float], side_px: int) -> Grain:
    size_nm = rng.uniform(250.0, 450.0)
    return Grain(
        name=name,
        crystal=random_crystal(rng, size_nm, rng.uniform(0.5, 8.0)),
        place_um=place_um,
        centre_deg=rng.uniform(-0.15, 0.15),
        shift_px=(side_px * rng.uniform(-0.12, 0.12), side_px * rng.uniform(-0.12, 0.12)),
        peak_rate=1e5 * (size_nm / 400.0) ** 4,
    )


class DriftingCrystal:
    """A crystal that strains and turns while it is exposed.

    Parameters
    ----------
    crystal
        What it is after so many seconds of exposure, in the lab frame where it stands on its peak. Asked
        `each_s` only: its diffraction takes a while to compute.
    centre_deg
        Where its peak is on the rocking axis after so many seconds.
    geometry, detector, peak_rate, seed
        As in `bluesky_cdinn.sim.devices.CrystalInBeam`.
    each_s
        Seconds of exposure from one crystal to the next.
    """

    def __init__(
        self,
        crystal: Callable[[float], Crystal],
        centre_deg: Callable[[float], float],
        geometry: Geometry,
        detector: DetectorModel,
        *,
        each_s: float,
        peak_rate: float = 1e6,
        seed: int = 0,
    ) -> None:
        self.geometry = geometry
        self.detector = detector
        self.shape = detector.shape
        self.dtype = np.dtype(detector.dtype)
        self.peak_rate = peak_rate
        self.exposed_s = 0.0
        self._crystal, self._centre_deg = crystal, centre_deg
        self._each_s = each_s
        self._rng = np.random.default_rng(seed)
        self._at = -1
        self._diffraction: Diffraction | None = None

    def frame(self, angle_deg: float, count_time_s: float) -> NDArray[np.integer]:
        """Return the counts of one exposure at a position of the stage, and grow older by it."""
        at = int(self.exposed_s / self._each_s)
        if self._diffraction is None or at != self._at:
            self._at = at
            self._diffraction = Diffraction(self._crystal(at * self._each_s), self.geometry, self.shape)
        offset = angle_deg - self._centre_deg(self.exposed_s)
        expected = self._diffraction.frame(offset) * (self.peak_rate * count_time_s)
        self.exposed_s += count_time_s
        return self.detector.expose(expected, self._rng, count_time_s)
