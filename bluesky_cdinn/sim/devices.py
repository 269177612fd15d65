"""The simulated beamline: a gold nanocrystal in the beam, a detector that sees it, a stage that rocks it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.geometry import wavenumber
from bluesky_cdinn.records import Geometry
from bluesky_cdinn.sim.area_detector import SimulatedAreaDetector
from bluesky_cdinn.sim.crystal import Crystal, random_crystal
from bluesky_cdinn.sim.delivery import DeliveryName
from bluesky_cdinn.sim.detector_effects import DetectorModel, random_detector
from bluesky_cdinn.sim.diffraction import Diffraction
from bluesky_cdinn.sim.stage import RockingStage

__all__ = [
    "CrystalInBeam",
    "RockingStage",
    "SimulatedAreaDetector",
    "gold_geometry",
    "simulated_beamline",
]

GOLD_LATTICE_NM = 0.40782
"""Cubic lattice parameter of gold at room temperature."""


def gold_geometry(
    shape: tuple[int, int] = (128, 128),
    *,
    energy_keV: float = 9.0,
    detector_distance_m: float = 0.5,
    pixel_size_um: float = 55.0,
    gamma_deg: float = 12.0,
) -> Geometry:
    """Return a geometry in which the middle of the detector sees the 111 reflection of gold.

    Parameters
    ----------
    shape
        Detector (rows, columns).
    energy_keV, detector_distance_m, pixel_size_um
        As in `Geometry`.
    gamma_deg
        How far up the arm is; its delta follows from Bragg's law.

    Raises
    ------
    InvalidInput
        If the arm's elevation alone is beyond the scattering angle.
    """
    q = 2 * math.pi * math.sqrt(3) / GOLD_LATTICE_NM
    # |k_out - k_in|^2 = 2 k^2 (1 - cos 2theta), and cos 2theta = cos delta cos gamma.
    cos_delta = (1 - (q / wavenumber(energy_keV)) ** 2 / 2) / math.cos(math.radians(gamma_deg))
    if not -1 <= cos_delta <= 1:
        raise InvalidInput(
            f"gold 111 at {energy_keV} keV can't be reached with gamma at {gamma_deg} deg: "
            "take another energy or a gamma nearer to 0"
        )
    return Geometry(
        energy_keV=energy_keV,
        detector_distance_m=detector_distance_m,
        pixel_size_um=(pixel_size_um, pixel_size_um),
        detector_angles_deg=(math.degrees(math.acos(cos_delta)), gamma_deg),
        beam_centre_px=(shape[0] / 2, shape[1] / 2),
        reflection=(1, 1, 1),
        lattice_nm=GOLD_LATTICE_NM,
    )


class CrystalInBeam:
    """A crystal's diffraction as an imperfect detector counts it.

    Parameters
    ----------
    crystal
        In the lab frame where it stands at `centre_deg`.
    geometry
        Of the measurement.
    detector
        And its faults.
    peak_rate
        Counts a second in a pixel on the Bragg peak's maximum.
    centre_deg
        Position of the rocking stage, or monochromator, at which the crystal is in the Bragg condition.
    seed
        Of the photons.
    """

    def __init__(
        self,
        crystal: Crystal,
        geometry: Geometry,
        detector: DetectorModel,
        *,
        peak_rate: float = 1e6,
        centre_deg: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.crystal = crystal
        self.geometry = geometry
        self.detector = detector
        self.shape = detector.shape
        self.dtype = np.dtype(detector.dtype)
        self.diffraction = Diffraction(crystal, geometry, detector.shape)
        self.peak_rate = peak_rate
        self.centre_deg = centre_deg
        self._rng = np.random.default_rng(seed)

    def frame(self, angle_deg: float, count_time_s: float) -> NDArray[np.integer]:
        """Return the counts of one exposure at a position of the stage."""
        expected = self.diffraction.frame(angle_deg - self.centre_deg) * (self.peak_rate * count_time_s)
        return self.detector.expose(expected, self._rng, count_time_s)


def simulated_beamline(
    *,
    crystal: Crystal | None = None,
    geometry: Geometry | None = None,
    detector: DetectorModel | None = None,
    size_nm: float = 400.0,
    phase_range_rad: float = 3.0,
    peak_rate: float = 1e6,
    delivery: DeliveryName = "event",
    directory: Path | str | None = None,
    time_scale: float = 0.02,
    seed: int = 0,
    cdi: Mapping[str, Any] | None = None,
) -> tuple[SimulatedAreaDetector, RockingStage]:
    """Return a detector ``det`` and a rocking stage ``theta``, or a monochromator, that look at one crystal.

    ``RE(rocking_scan(det, theta, -0.35, 0.35, 64))`` measures the default crystal, oversampled three to
    four times on each axis. What there is to find stays in ``det.source.crystal``.

    Parameters
    ----------
    crystal
        None takes a random one.
    geometry
        Any; None takes `gold_geometry`. One whose energy is scanned gives a stage ``energy``, in keV.
    detector
        None takes 128 x 128 pixels with background and a few dead and hot ones.
    size_nm, phase_range_rad
        Of a random crystal: between its farthest corners, and of its smooth strain field.
    peak_rate
        Counts a second in a pixel on the peak's maximum; the exposure is 1 s at first.
    delivery, directory
        How frames are handed over; see `SimulatedAreaDetector`.
    time_scale
        Real seconds for each second of exposure and motion; 0 goes as fast as it can.
    seed
        Of the crystal, of the detector's faults and of the photons.
    cdi
        More that is known of the sample, over what the beamline says.
    """
    crystal_rng, detector_rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    if crystal is None:
        crystal = random_crystal(crystal_rng, size_nm, phase_range_rad)
    if detector is None:
        detector = random_detector(detector_rng, (128, 128), gap=False)
    if geometry is None:
        geometry = gold_geometry(detector.shape)
    stage, centre = _stage(geometry, time_scale)
    det = SimulatedAreaDetector(
        name="det",
        source=CrystalInBeam(crystal, geometry, detector, peak_rate=peak_rate, centre_deg=centre, seed=seed),
        stage=stage,
        delivery=delivery,
        directory=directory,
        time_scale=time_scale,
        cdi={"sample": f"simulated gold nanocrystal {seed}", **(cdi or {})},
    )
    return det, stage


def _stage(geometry: Geometry, time_scale: float) -> tuple[RockingStage, float]:
    """Return what is scanned, and where it stands on the peak."""
    if geometry.scanned == "angle":
        return RockingStage(name="theta", time_scale=time_scale), 0.0
    energy = geometry.energy_keV
    limits = (0.5 * energy, 1.5 * energy)
    stage = RockingStage(
        name="energy", limits_deg=limits, initial_deg=energy, time_scale=time_scale, egu="keV"
    )
    return stage, energy
