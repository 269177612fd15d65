"""The frozen things that travel through the package; every array with its shape, dtype and unit.

Axes of a volume are (rocking, row, column): the rocking angle rises with the first index whatever way
the scan went, and row 0 is the detector's top. Lengths are in nm, reciprocal lengths in 1/nm with the
2 pi, energies in keV, angles in degrees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import InvalidInput

Status = Literal["success", "failed", "cancelled"]
Scanned = Literal["angle", "energy"]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Progress:
    """How far a reconstruction is.

    Parameters
    ----------
    stage
        What is being done: "prepare", "starts", "projections", "polish", "judge", ...
    fraction
        Of the whole reconstruction, 0 to 1, never falling.
    chi2
        Of the leading object; NaN before there is one.
    """

    stage: str
    fraction: float
    chi2: float = float("nan")


@dataclass(frozen=True)
class FrameReference:
    """Where one detector frame lies, when documents point to a file instead of carrying the image.

    Parameters
    ----------
    path
        The HDF5 file.
    dataset
        The dataset in it, with the frame number as its first axis.
    index
        The frame's place along that axis.
    """

    path: Path
    dataset: str
    index: int


@dataclass(frozen=True)
class Geometry:
    """How the beam, the crystal and the detector stood at the centre of the rocking curve.

    Lab frame: z along the beam, y up, x completing a right-handed frame. Any goniometer and detector comes
    down to it (`bluesky_cdinn.goniometer`): the axis that rocks the sample, turned by the circles outside of
    it, and three directions of the detector.

    Parameters
    ----------
    energy_keV
        Photon energy.
    detector_distance_m
        From the sample to the detector along the arm.
    pixel_size_um
        (row, column) pitch.
    detector_angles_deg
        (delta, gamma): where the arm points, turned by delta about y and inside of it by gamma upwards.
    beam_centre_px
        (row, column) where the arm's axis meets the detector.
    rocking_axis
        Unit vector about which a rising rocking angle turns the sample, right-handed, in the lab frame.
    reflection
        Miller indices, where known.
    lattice_nm
        Cubic lattice parameter, where known.
    detector_axes
        Unit vectors in the lab along which the row number rises, the column number rises, and the arm
        points; None for a detector that the arm carries with its rows downwards, along -y at (0, 0), and
        its columns along +x.
    scanned
        What is stepped from frame to frame: the rocking angle, or with the sample at rest the photon
        energy, whose value at the centre is then ``energy_keV``.
    """

    energy_keV: float
    detector_distance_m: float
    pixel_size_um: tuple[float, float]
    detector_angles_deg: tuple[float, float]
    beam_centre_px: tuple[float, float]
    rocking_axis: Vector = (0.0, 1.0, 0.0)
    reflection: tuple[int, int, int] | None = None
    lattice_nm: float | None = None
    detector_axes: tuple[Vector, Vector, Vector] | None = None
    scanned: Scanned = "angle"


@dataclass(frozen=True, eq=False)
class RockingCurve:
    """What the documents of one rocking scan say, frame by frame, in the order of measurement.

    An angle may come more than once: repeated points and several frames a point add up.

    Parameters
    ----------
    frames
        Counts: either an array (points, rows, columns) of any real dtype, or one
        `FrameReference` a point, to be read where the computing is done.
    angles_deg
        Rocking-angle readback, float64 (points,); of an energy scan the photon energy, keV.
    count_time_s
        Exposure of each point, float64 (points,); None where nothing says it.
    monitor
        Incident flux in any unit, float64 (points,); None where not measured.
    geometry
        None where the documents don't hold it: the result then stays in voxel units.
    missing
        Names of the metadata that were looked for and not found.
    raw_uid, scan_id
        Of the raw run.
    exit_status
        The raw run's: "success", "abort" or "fail"; "unfinished" before it stopped.
    expected_points
        How many points the plan announced, None where it did not.
    planned_deg
        The angles, or energies, that the plan announced, in any order, float64 (angles,); None where it did
        not.
    metadata
        What the start document says beside (sample, operator, plan arguments, ...).
    """

    frames: NDArray[Any] | tuple[FrameReference, ...]
    angles_deg: NDArray[np.float64]
    count_time_s: NDArray[np.float64] | None = None
    monitor: NDArray[np.float64] | None = None
    geometry: Geometry | None = None
    missing: tuple[str, ...] = ()
    raw_uid: str = ""
    scan_id: int | None = None
    exit_status: str = "success"
    expected_points: int | None = None
    planned_deg: NDArray[np.float64] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.frames)
        for name in ("angles_deg", "count_time_s", "monitor"):
            values = getattr(self, name)
            if values is not None and np.shape(values) != (n,):
                raise InvalidInput(
                    f"{name} must have one value for each of the {n} frames, got shape {np.shape(values)}"
                )


@dataclass(frozen=True, eq=False)
class DiffractionVolume:
    """A measured 3D diffraction peak on a regular grid.

    Parameters
    ----------
    intensity
        Counts, float32 (rocking, row, column).
    valid
        True where measured and trusted, bool, the same shape.
    angles_deg
        Of each slice, rising, float64 (rocking,), or its photon energy, keV (`Geometry.scanned`); None for
        a volume that came without.
    geometry
        None keeps results in voxel units.
    window
        First (slice, row, column) of this volume in the measured one.
    history
        Every step that made it, in order, each a flat mapping with a "step" key: its provenance.
    flat_about
        (angle, row, column) that the volume was made a lattice about (`bluesky_cdinn.curvature`): its
        voxels lie in reciprocal space as the bases there say, exactly. None as measured: frames are curved.
    """

    intensity: NDArray[np.float32]
    valid: NDArray[np.bool_]
    angles_deg: NDArray[np.float64] | None = None
    geometry: Geometry | None = None
    window: tuple[int, int, int] = (0, 0, 0)
    history: tuple[Mapping[str, Any], ...] = ()
    flat_about: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.intensity.ndim != 3:
            raise InvalidInput(
                f"a diffraction volume must be 3D (rocking, row, column), got {self.intensity.ndim}D"
            )
        if self.valid.shape != self.intensity.shape:
            raise InvalidInput(
                f"valid must have the intensity's shape {self.intensity.shape}, got {self.valid.shape}"
            )
        if self.angles_deg is not None and self.angles_deg.shape != self.intensity.shape[:1]:
            raise InvalidInput(
                f"angles_deg must have one angle for each of the {self.intensity.shape[0]} slices, "
                f"got shape {self.angles_deg.shape}"
            )


@dataclass(frozen=True, eq=False)
class PartialResult:
    """What is known of a crystal while its scan still runs.

    Parameters
    ----------
    points
        Frames that it rests on.
    fraction
        Share of the planned rocking range that they cover, 0 to 1; NaN where nothing was announced.
    amplitude, phase
        Slices through the object's centre across each of its axes in turn, float32 (3, side, side), of one
        shape throughout a scan: a preview. Phase in rad, zero outside the support.
    chi2, free_llk, confidence, seconds
        As in `Reconstruction`, of what has been measured.
    scalars
        Other numbers: ``agreement``, ``phase_spread_rad``, ``change`` and ``change_rad`` (to the update
        before, of ``change_since_points`` frames: 1 - complex correlation, and the rms phase difference),
        ``size_nm``, ``strain_rms``, ...; a number that couldn't be computed is absent.
    """

    points: int
    fraction: float
    amplitude: NDArray[np.float32]
    phase: NDArray[np.float32]
    chi2: float = float("nan")
    free_llk: float = float("nan")
    confidence: float = 0.0
    seconds: float = float("nan")
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A crystal: the complex density that explains a diffraction volume, and how well it does.

    Parameters
    ----------
    density
        amplitude * exp(i phase), complex64, on the working grid; phase = Q . u.
    support
        Where the crystal is, bool, the same shape.
    chi2
        sum over valid of (abs(F) - sqrt(I))**2 / sum of I, not square-rooted.
    free_llk
        Poisson deviance a voxel on voxels held out of the fit.
    confidence
        Estimated probability, 0 to 1, that the phase is right to 0.1 rad rms (up to the ambiguities).
    seconds
        Wall time of the computing.
    cpu_s
        CPU time of the computing.
    timings_s
        Wall time of each stage.
    direct_basis
        Columns are the lab-frame steps of one voxel along each axis, nm, float64 (3, 3); None in voxel units.
    reciprocal_basis
        The same for one voxel of the diffraction volume, 1/nm.
    q_vector
        Bragg vector of the mean lattice, lab frame, 1/nm, float64 (3,): what ramp the density's phase has is
        in it already.
    displacement
        u_Q, nm, float32, NaN outside the support; None in voxel units.
    strain
        d(u_Q)/d(x_Q), dimensionless, float32, NaN outside the support; None in voxel units.
    phase_sd
        One sigma of the phase, rad, float32, NaN outside the support; None where it is not known.
    strain_sd
        One sigma of the strain, float32, NaN outside the support; None where it is not known.
    facet_table
        The crystal's facets as numbers, float64 (facets, 13); `bluesky_cdinn.facets.facets_of_table` reads
        them. None in voxel units, and where there are none.
    scalars
        Other numbers of the result (resolution_nm, strain_rms, size_nm, d_spacing_nm, agreement, ...);
        a number that couldn't be computed is absent.
    resolution_curve
        PRTF by shell: float32 (2, shells), frequency (cycles a voxel) and value; None for a single start.
    shell_correlation
        Estimated correlation with the true crystal (`bluesky_cdinn.resolution`): float32 (2, shells),
        frequency (cycles a voxel) and value; None for a single start.
    intensity_slices
        Through the peak across each axis, measured (NaN where not valid) and the model's, counts, float32
        (2, 3, side, side); None where unknown.
    progress
        chi2 of the leading start by iteration, float32 (iterations,).
    raw_uid, scan_id
        Of the raw run; empty and None for a volume that came without.
    parameters
        Everything that the result depends on beside the data: options, seed, versions, weights.
    history
        The volume's provenance, then the reconstruction's own stages.
    metadata
        What the raw start document said beside (sample, ...).
    status, reason
        A failed reconstruction is a result too; its density is empty and its reason says why.
    """

    density: NDArray[np.complex64]
    support: NDArray[np.bool_]
    chi2: float = float("nan")
    free_llk: float = float("nan")
    confidence: float = 0.0
    seconds: float = float("nan")
    cpu_s: float = float("nan")
    timings_s: Mapping[str, float] = field(default_factory=dict)
    direct_basis: NDArray[np.float64] | None = None
    reciprocal_basis: NDArray[np.float64] | None = None
    q_vector: NDArray[np.float64] | None = None
    displacement: NDArray[np.float32] | None = None
    strain: NDArray[np.float32] | None = None
    phase_sd: NDArray[np.float32] | None = None
    strain_sd: NDArray[np.float32] | None = None
    facet_table: NDArray[np.float64] | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    resolution_curve: NDArray[np.float32] | None = None
    shell_correlation: NDArray[np.float32] | None = None
    intensity_slices: NDArray[np.float32] | None = None
    progress: NDArray[np.float32] | None = None
    raw_uid: str = ""
    scan_id: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    status: Status = "success"
    reason: str = ""

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        # By name: figures are layers above, and what travels needs none of them.
        return import_module("bluesky_cdinn.notebook").reconstruction_html(self)

    @property
    def amplitude(self) -> NDArray[np.float32]:
        """abs(density), float32."""
        return np.abs(self.density)

    @property
    def phase(self) -> NDArray[np.float32]:
        """Phase of the density in rad, wrapped to (-pi, pi], float32, zero outside the support."""
        return np.where(self.support, np.angle(self.density), 0.0).astype(np.float32)

    @property
    def warnings(self) -> list[str]:
        """What the steps that made it warned of."""
        return [str(line) for step in self.history for line in step.get("warnings", ())]
