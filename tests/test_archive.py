"""Scans of an archive become raw runs that know their origin, and are reconstructed like any other."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from bluesky_cdinn.archive import (
    ArchivedScan,
    find_imported,
    import_documents,
    import_scan,
    origin_of,
    read_archived_volume,
    read_recorded,
)
from bluesky_cdinn.archive_hdf5 import read_hdf5
from bluesky_cdinn.archive_spec import read_spec, tiff_frames
from bluesky_cdinn.callbacks import RockingCurveAssembler, stored_curve
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.export import export_volume
from bluesky_cdinn.records import DiffractionVolume, Geometry

GEOMETRY = {
    "energy_keV": 9.0,
    "detector_distance_m": 0.5,
    "pixel_size_um": [55.0, 55.0],
    "detector_angles_deg": [32.0, 12.0],
    "beam_centre_px": [6.0, 7.0],
}
ANGLES = 10 + 0.01 * np.arange(9)


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).poisson(9, (9, 12, 14)).astype(np.int32)


@pytest.fixture
def nexus(tmp_path: Path, frames: np.ndarray) -> Path:
    """Write a file as ESRF's BLISS lays it out, with two scans."""
    with h5py.File(tmp_path / "sample_0001.h5", "w") as file:
        for number in (23, 24):
            entry = file.create_group(f"{number}.1")
            entry.attrs["NX_class"] = "NXentry"
            entry["start_time"] = "2024-05-06T07:08:09+00:00"
            entry["sample/name"] = "Pt island"
            entry["instrument/mpx/data"] = frames + number
            entry["instrument/mpx/distance"] = 500.0
            entry["instrument/mpx/distance"].attrs["units"] = "mm"
            for name in ("x_pixel_size", "y_pixel_size"):
                entry[f"instrument/mpx/{name}"] = 55e-6
            entry["instrument/mpx/beam_center_x"], entry["instrument/mpx/beam_center_y"] = 7.0, 6.0
            entry["instrument/beam/incident_energy"] = 9000.0
            entry["instrument/beam/incident_energy"].attrs["units"] = "eV"
            for name, angle in (("nu", 12.0), ("delta", 32.0), ("phi", 0.0), ("mu", 0.0)):
                entry[f"instrument/positioners/{name}"] = angle
            entry["instrument/positioners/eta"] = ANGLES
            entry["measurement/eta"] = h5py.SoftLink(f"/{number}.1/instrument/positioners/eta")
            entry["measurement/mpx"] = h5py.SoftLink(f"/{number}.1/instrument/mpx/data")
            entry["measurement/lost"] = h5py.ExternalLink("gone.h5", "/data")
            entry["measurement/acq_time"] = np.full(9, 0.5)
    return tmp_path / "sample_0001.h5"


def curve_of(scan: ArchivedScan):
    assembler = RockingCurveAssembler({})
    for name, document in import_documents(scan, origin_of(scan)):
        assembler(name, document)
    return assembler.curve()


def test_a_nexus_scan_says_itself_what_is_needed(nexus: Path, frames: np.ndarray) -> None:
    scan = read_hdf5(nexus, {"beamline": "id01"}, scan="24")
    assert (scan.motor, scan.scan, scan.sample) == ("eta", "24", "Pt island")
    assert scan.measured == 1714979289.0
    curve = curve_of(scan)
    np.testing.assert_array_equal(np.asarray(curve.frames), frames + 24)
    np.testing.assert_array_equal(curve.angles_deg, ANGLES)
    np.testing.assert_array_equal(curve.count_time_s, 0.5)
    assert curve.scan_id == 24
    assert curve.geometry is not None
    assert curve.geometry.energy_keV == pytest.approx(9.0)
    assert curve.geometry.detector_distance_m == pytest.approx(0.5)
    assert curve.geometry.pixel_size_um == pytest.approx((55.0, 55.0))
    assert curve.geometry.beam_centre_px == (6.0, 7.0)
    assert curve.metadata["cdi"]["circles_deg"]["delta"] == 32.0
    assert curve.missing == ()


def test_what_is_asked_for_is_named_and_what_is_there_is_listed(nexus: Path) -> None:
    named = read_hdf5(
        nexus, {"energy_keV": 10.0}, scan="23", frames="measurement/mpx", angles="/23.1/measurement/eta"
    )
    assert curve_of(named).metadata["cdi"]["energy_keV"] == 10.0
    with pytest.raises(InvalidInput, match=r"23\.1, 24\.1"):
        read_hdf5(nexus, {})
    with pytest.raises(InvalidInput, match=r"no scan 25, only 23\.1"):
        read_hdf5(nexus, {}, scan="25")
    with pytest.raises(InvalidInput, match="measurement/acq_time"):
        read_hdf5(nexus, {}, scan="24", frames="measurement/nothing")
    with h5py.File(nexus, "a") as file:
        file["24.1/measurement/other"] = np.zeros((9, 4, 4), np.uint16)
        file["24.1/measurement/th"] = ANGLES
    with pytest.raises(InvalidInput, match="one stack of frames"):
        read_hdf5(nexus, {}, scan="24")
    with pytest.raises(InvalidInput, match="one angle of"):
        read_hdf5(nexus, {}, scan="24", frames="measurement/mpx")
    with pytest.raises(InvalidInput, match="must vary"):
        read_hdf5(nexus, {}, scan="24", frames="measurement/mpx", angles="instrument/positioners/delta")


def test_lengths_are_the_detectors_and_in_its_units(tmp_path: Path, frames: np.ndarray) -> None:
    with h5py.File(tmp_path / "lima.h5", "w") as file:
        file["entry_0000/data"] = frames
    with h5py.File(tmp_path / "scan.nxs", "w") as file:
        entry = file.create_group("entry")
        entry["eta"] = np.radians(ANGLES)
        entry["eta"].attrs["units"] = "radians"
        entry["fluorescence/energy"] = np.linspace(0, 20, 64)
        entry["fluorescence/energy"].attrs["units"] = "keV"
        entry["instrument/attenuator/distance"] = 30.0
        detector = entry.create_group("instrument/detector")
        detector["data"] = h5py.ExternalLink("lima.h5", "/entry_0000/data")
        entry["measurement/detector"] = h5py.SoftLink("/entry/instrument/detector/data")
        said = {"distance": (500, "millimeter"), "x_pixel_size": (55, "um"), "y_pixel_size": (55, "microns"),
                "beam_center_x": (0.385, "mm"), "beam_center_y": (330e-6, "m")}  # fmt: skip
        for name, (value, unit) in said.items():
            detector[name] = float(value)
            detector[name].attrs["units"] = unit
    scan = read_hdf5(tmp_path / "scan.nxs", {})
    np.testing.assert_allclose(scan.angles_deg, ANGLES)
    np.testing.assert_array_equal(scan.frames[3], frames[3])
    assert set(scan.cdi) == {"detector_distance_m", "pixel_size_um", "beam_centre_px"}
    assert scan.cdi["detector_distance_m"] == pytest.approx(0.5)
    assert scan.cdi["beam_centre_px"] == pytest.approx([6.0, 7.0])
    with h5py.File(tmp_path / "scan.nxs", "a") as file:
        file["entry/mono"] = 9000 + np.arange(9.0)
        file["entry/mono"].attrs["units"] = "eV"
    energies = read_hdf5(tmp_path / "scan.nxs", {"scanned": "energy"}, angles="entry/mono")
    np.testing.assert_allclose(energies.angles_deg, 9 + 0.001 * np.arange(9))
    with pytest.raises(InvalidInput, match=r"must be one of deg.*got ev"):
        read_hdf5(tmp_path / "scan.nxs", {}, angles="entry/mono")


def test_what_holds_no_numbers_is_refused(nexus: Path) -> None:
    with h5py.File(nexus, "a") as file:
        file["24.1/complex"] = np.zeros((9, 4, 4), np.complex64)
    for wrong in ({"frames": "sample/name"}, {"frames": "complex"}, {"angles": "sample/name"}):
        with pytest.raises(InvalidInput, match=r"must be counts|must hold numbers"):
            read_hdf5(nexus, {}, scan="24", **({"frames": "measurement/mpx"} | wrong))


def test_a_frame_unlike_the_first_is_refused(tmp_path: Path, frames: np.ndarray) -> None:
    for number, frame in enumerate(frames):
        tifffile.imwrite(tmp_path / f"scan_{number}.tif", frame if number != 5 else frame[:6])
    stack = tiff_frames(list(tmp_path.glob("*.tif")))
    scan = ArchivedScan(stack.files, stack, ANGLES)
    with pytest.raises(InvalidInput, match="frame 5 of"):
        list(import_documents(scan, origin_of(scan)))
    (tmp_path / "scan_5.tif").write_bytes(b"no image")
    with pytest.raises(InvalidInput, match=r"frame 5 of .* can't be read"):
        list(import_documents(scan, origin_of(scan)))


def test_spec_says_the_angles_of_tiff_files(tmp_path: Path, frames: np.ndarray) -> None:
    pytest.importorskip("silx")
    # Numbers without leading zeros: by name, frame 10 would come before frame 2.
    for number, frame in enumerate(frames, start=5):
        tifffile.imwrite(tmp_path / f"scan_{number}.tif", frame)
    points = "\n".join(f"{angle:.3f} {number} 1e5" for number, angle in enumerate(ANGLES))
    (tmp_path / "fourc.spec").write_text(
        "#F fourc.spec\n#E 1\n#D Mon May 06 07:08:09 2024\n#O0 mu  delta  nu\n\n"
        "#S 7 ascan eta 10 10.08 8 0.5\n#D Mon May 06 07:18:09 2024\n#T 0.5  (Seconds)\n"
        f"#P0 0 32 12\n#N 3\n#L eta  Epoch  mon\n{points}\n"
    )
    files = list(tmp_path.glob("*.tif"))
    cdi = {**GEOMETRY, "beamline": "id01"}
    scan = read_spec(tmp_path / "fourc.spec", files, cdi, scan="7", monitor="mon")
    assert (scan.motor, scan.scan) == ("eta", "7")
    assert scan.cdi["circles_deg"] == {"mu": 0.0, "delta": 32.0, "nu": 12.0}
    assert scan.measured is not None
    curve = curve_of(scan)
    np.testing.assert_array_equal(np.asarray(curve.frames), frames)
    np.testing.assert_allclose(curve.angles_deg, ANGLES)
    np.testing.assert_array_equal(curve.count_time_s, 0.5)
    with pytest.raises(InvalidInput, match="no column phi, only eta, Epoch, mon"):
        read_spec(tmp_path / "fourc.spec", files, cdi, scan="7", angles="phi")
    with pytest.raises(InvalidInput, match="no scan 8"):
        read_spec(tmp_path / "fourc.spec", files, cdi, scan="8")
    with pytest.raises(InvalidInput, match="9 angles"):
        read_spec(tmp_path / "fourc.spec", files[:8], cdi, scan="7")


@pytest.mark.parametrize("suffix", [".cxi", ".npz"])
def test_a_volume_becomes_a_scan_with_its_geometry(tmp_path: Path, frames: np.ndarray, suffix: str) -> None:
    geometry = Geometry(9.0, 0.5, (55.0, 55.0), (32.0, 12.0), (46.0, 57.0))
    valid = np.ones(frames.shape, bool)
    valid[:, 2, 3] = False
    counts = np.where(valid, frames, 0).astype(np.float32)
    volume = DiffractionVolume(counts, valid, ANGLES, geometry, window=(0, 40, 50))
    export_volume(tmp_path / f"v{suffix}", volume)
    curve = curve_of(read_archived_volume(tmp_path / f"v{suffix}", {}))
    assert curve.geometry is not None
    assert curve.geometry.beam_centre_px == (6.0, 7.0)
    np.testing.assert_array_equal(np.isnan(np.asarray(curve.frames)), ~valid)
    np.testing.assert_array_equal(np.nan_to_num(np.asarray(curve.frames)), counts)
    np.savez(tmp_path / "bare.npz", intensity=frames)
    with pytest.raises(InvalidInput, match="angles_deg"):
        read_archived_volume(tmp_path / "bare.npz", {})


def test_a_run_is_stored_once_and_knows_its_origin(nexus: Path, frames: np.ndarray, catalog) -> None:
    scan = read_hdf5(nexus, GEOMETRY, scan="24")
    first = import_scan(catalog, scan)
    assert first.new
    # It may be on its way still.
    assert import_scan(catalog, scan) == (first.uid, False)
    assert catalog.flush(60)
    start = catalog.raw[first.uid].metadata["start"]
    assert start["time"] == 1714979289.0
    assert start["origin"]["file"] == str(nexus)
    assert (start["origin"]["scan"], start["scan_id"], start["sample"]) == ("24", 24, "Pt island")
    assert find_imported(catalog, origin_of(scan)["sha256"]) == first.uid
    renamed = nexus.rename(nexus.with_name("moved.h5"))
    with h5py.File(renamed, "a") as file:
        file["measured since"] = 1.0
    assert import_scan(catalog, read_hdf5(renamed, GEOMETRY, scan="24")) == (first.uid, False)
    other = import_scan(catalog, read_hdf5(renamed, GEOMETRY, scan="23"))
    repeated = import_scan(catalog, read_hdf5(renamed, GEOMETRY, scan="24"), again=True)
    assert other.new
    assert repeated.new
    assert len({first.uid, other.uid, repeated.uid}) == 3
    curve = stored_curve(catalog, first.uid)
    np.testing.assert_array_equal(np.asarray(curve.frames), frames + 24)
    np.testing.assert_array_equal(curve.angles_deg, ANGLES)


def test_a_damaged_file_leaves_no_half_run(tmp_path: Path, frames: np.ndarray, catalog) -> None:
    np.savez(tmp_path / "scan.npz", frames=frames, angles_deg=ANGLES, **GEOMETRY)
    scan = read_recorded(tmp_path / "scan.npz", {})

    class Damaged:
        shape, dtype = frames.shape, frames.dtype

        def __getitem__(self, index):
            if index == 5:
                raise OSError("bad sector")
            return frames[index]

    damaged = ArchivedScan(scan.files, Damaged(), scan.angles_deg)
    with pytest.raises(InvalidInput, match=r"frame 5 of .*bad sector"):
        import_scan(catalog, damaged)
    assert len(catalog.raw) == 0
    assert not list(catalog.settings.spool.glob("*raw*"))
    assert import_scan(catalog, scan).new
