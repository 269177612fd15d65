"""Files that other programs open: silx, by NXdata's own rules, and VTK; each says where it comes from."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from bluesky_cdinn.errors import InvalidInput, MissingMetadata
from bluesky_cdinn.export import export, export_volume, format_of
from bluesky_cdinn.lab_frame import to_lab_frame
from bluesky_cdinn.records import DiffractionVolume, Geometry, Reconstruction
from bluesky_cdinn.volume_files import read_volume

OBLIQUE = np.array([[-11.1, 12.4, 0.8], [-8.0, 0.3, -12.9], [-34.0, -3.8, 2.1]])
SHAPE = (16, 28, 30)
GEOMETRY = Geometry(
    energy_keV=9.0,
    detector_distance_m=0.5,
    pixel_size_um=(55.0, 50.0),
    detector_angles_deg=(32.0, 12.0),
    beam_centre_px=(14.0, 15.0),
    reflection=(1, 1, 1),
    lattice_nm=0.408,
)
CDI = {
    "energy_keV": 9.0,
    "detector_distance_m": 0.5,
    "pixel_size_um": 55.0,
    "detector_angles_deg": [32.0, 12.0],
    "beam_centre_px": [14, 15],
}
FORMATS = {"cxi": ".cxi", "nexus": ".nxs", "vti": ".vti", "vts": ".vts", "npz": ".npz"}


@pytest.fixture
def result() -> Reconstruction:
    indices = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) - np.array(SHAPE) // 2
    points = indices @ OBLIQUE.T
    support = np.linalg.norm(points, axis=-1) < 90
    density = np.where(support, 2 * np.exp(1j * points[..., 0] ** 2 / 9000), 0).astype(np.complex64)
    maps = {
        "displacement": points[..., 0] / 900,
        "strain": 1e-5 * points[..., 1],
        "strain_sd": points[..., 2] * 0 + 1e-4,
    }
    return Reconstruction(
        density=density,
        support=support,
        chi2=0.004,
        scalars={"size_nm": 180.0},
        direct_basis=OBLIQUE,
        reciprocal_basis=np.linalg.inv(OBLIQUE).T,
        q_vector=np.array([14.0, 6.0, -8.0]),
        progress=np.geomspace(1, 0.004, 20).astype(np.float32),
        resolution_curve=np.array([[0, 0.25, 0.5], [1, 0.8, 0.3]], dtype=np.float32),
        raw_uid="raw-1",
        scan_id=7,
        parameters={"seed": 3, "weights": {"name": "w", "sha256": "abc"}, "levels": [[8, 8, 8]]},
        history=({"step": "assemble", "points": 16},),
        metadata={"sample": "gold", "cdi": CDI},
        **{name: np.where(support, values, np.nan).astype(np.float32) for name, values in maps.items()},
    )  # fmt: skip


@pytest.fixture
def volume() -> DiffractionVolume:
    counts = np.random.default_rng(0).poisson(20, SHAPE).astype(np.float32)
    valid = np.ones(SHAPE, bool)
    valid[:, 3] = False
    angles = 0.01 * np.arange(SHAPE[0])
    return DiffractionVolume(
        np.where(valid, counts, 0), valid, angles, GEOMETRY, window=(0, 5, 6), flat_about=(0.08, 19, 21)
    )


def origin_in(path: Path) -> dict:
    """Return what a file says of where it comes from."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return json.loads(str(arrays["provenance"]))
    if path.suffix in (".vti", ".vts"):
        pyvista = pytest.importorskip("pyvista")
        return json.loads(pyvista.read(path).field_data["provenance"][0])
    inside = {".cxi": "entry_1/image_1/process_1/note_1/data", ".nxs": "entry/process/provenance/data"}
    with h5py.File(path) as file:
        return json.loads(file[inside[path.suffix]].asstr()[()])


@pytest.mark.parametrize("suffix", FORMATS.values())
def test_every_file_says_where_it_comes_from(tmp_path: Path, result: Reconstruction, suffix: str) -> None:
    export(tmp_path / f"crystal{suffix}", result, processed_uid="done-1")
    assert [path.name for path in tmp_path.iterdir()] == [f"crystal{suffix}"]
    said = origin_in(tmp_path / f"crystal{suffix}")
    assert (said["raw_uid"], said["processed_uid"], said["sample"]) == ("raw-1", "done-1", "gold")
    assert said["weights"]["sha256"] == "abc"
    assert said["parameters"]["seed"] == 3
    assert said["scalars"]["size_nm"] == 180.0
    assert said["history"][0]["step"] == "assemble"
    assert "nm" in said["conventions"]


def test_cxi_has_the_object_where_programs_for_phasing_look(tmp_path: Path, result: Reconstruction) -> None:
    export(tmp_path / "c.cxi", result)
    with h5py.File(tmp_path / "c.cxi") as file:
        assert file["cxi_version"][()] == 160
        image = file["entry_1/image_1"]
        np.testing.assert_array_equal(image["data"], result.density)
        np.testing.assert_array_equal(file["entry_1/data_1/data"], result.density)
        np.testing.assert_array_equal(image["mask"][()] == 0, result.support)
        assert image["is_fft_shifted"][()] == 0
        assert image["data_space"].asstr()[()] == "real"
        np.testing.assert_array_equal(image["direct_basis"], OBLIQUE)
        assert image["direct_basis"].attrs["units"] == "nm"
        np.testing.assert_allclose(file["entry_1/instrument_1/source_1/energy"][()], 9e3 * 1.602176634e-19)
        assert file["entry_1/instrument_1/detector_1/distance"][()] == 0.5


def test_silx_opens_both_hdf5_files_and_finds_what_to_show(tmp_path: Path, result: Reconstruction) -> None:
    nxdata = pytest.importorskip("silx.io.nxdata")
    silx_io = pytest.importorskip("silx.io")
    for name in ("c.nxs", "c.cxi"):
        export(tmp_path / name, result)
        with silx_io.open(str(tmp_path / name)) as file:
            shown = nxdata.get_default(file)
            assert shown is not None
            assert shown.is_valid
            assert shown.signal.ndim == 3


def test_every_nxdata_group_keeps_the_rules(
    tmp_path: Path, result: Reconstruction, volume: DiffractionVolume
) -> None:
    nxdata = pytest.importorskip("silx.io.nxdata")
    export(tmp_path / "c.nxs", result, volume=volume, voxel_nm=10.0)
    lab = to_lab_frame(result, 10.0)
    with h5py.File(tmp_path / "c.nxs") as file:
        groups = {name: nxdata.NXdata(item) for name, item in file["entry"].items()
                  if item.attrs.get("NX_class") == "NXdata"}  # fmt: skip
        assert set(groups) == {"object", "reconstruction", "measurement", "resolution", "progress"}
        for name, data in groups.items():
            assert data.is_valid, (name, data.issues)
        shown = groups["object"]
        assert shown.signal_name == "amplitude"
        assert list(shown.axes_names) == ["x (nm)", "y (nm)", "z (nm)"] or shown.axes_dataset_names == [
            "x",
            "y",
            "z",
        ]
        assert {"phase", "strain", "displacement", "strain_sd"} <= set(shown.auxiliary_signals_dataset_names)
        np.testing.assert_array_equal(shown.signal, lab.amplitude)
        np.testing.assert_allclose(np.diff(file["entry/object/x"]), 10.0)
        np.testing.assert_allclose(
            [file[f"entry/object/{axis}"][0] for axis in "xyz"], lab.axes @ lab.origin_nm
        )
        np.testing.assert_array_equal(file["entry/measurement/intensity"], volume.intensity)
        np.testing.assert_array_equal(file["entry/measurement/angle"], volume.angles_deg)


def test_paraviews_reader_shows_the_crystal_in_the_lab(tmp_path: Path, result: Reconstruction) -> None:
    pyvista = pytest.importorskip("pyvista")
    export(tmp_path / "c.vti", result, voxel_nm=8.0)
    lab = to_lab_frame(result, 8.0)
    grid = pyvista.read(tmp_path / "c.vti")
    assert grid.dimensions == lab.density.shape
    np.testing.assert_allclose(grid.spacing, 8.0)
    np.testing.assert_allclose(grid.origin, lab.origin_nm, rtol=1e-6)
    for name in ("amplitude", "phase", "displacement", "strain", "strain_sd"):
        expected = lab.maps[name] if name in lab.maps else getattr(lab, name)
        np.testing.assert_array_equal(grid[name].reshape(lab.density.shape, order="F"), expected)
    surface = grid.contour([1.0], scalars="amplitude")
    extents = np.ptp(np.asarray(surface.points), axis=0)
    np.testing.assert_allclose(extents, 180.0, atol=36.0)  # a ball is a ball


def test_the_oblique_grid_lies_where_its_voxels_are(tmp_path: Path, result: Reconstruction) -> None:
    pyvista = pytest.importorskip("pyvista")
    export(tmp_path / "c.vts", result)
    grid = pyvista.read(tmp_path / "c.vts")
    inside = grid["support"] > 0
    assert inside.sum() == result.support.sum()
    assert np.linalg.norm(grid.points[inside], axis=1).max() < 90
    np.testing.assert_allclose(grid["strain"][inside], 1e-5 * grid.points[inside, 1], atol=1e-9)
    np.testing.assert_allclose(grid["amplitude"][inside], 2, rtol=1e-5)
    assert json.loads(grid.field_data["units"][0])["displacement"] == "nm"


def test_npz_holds_every_array(tmp_path: Path, result: Reconstruction) -> None:
    export(tmp_path / "c.npz", result)
    with np.load(tmp_path / "c.npz", allow_pickle=False) as arrays:
        for name in ("density", "support", "strain", "displacement", "strain_sd", "direct_basis", "q_vector"):
            np.testing.assert_array_equal(arrays[name], getattr(result, name))


@pytest.mark.parametrize("suffix", [".cxi", ".npz"])
@pytest.mark.parametrize("with_object", [True, False])
def test_an_exported_volume_is_read_back_with_its_geometry(
    tmp_path: Path, result: Reconstruction, volume: DiffractionVolume, suffix: str, with_object: bool
) -> None:
    path = tmp_path / f"v{suffix}"
    if with_object:
        export(path, result, volume=volume)
    else:
        export_volume(path, volume, raw_uid="raw-1", metadata=result.metadata)
    back = read_volume(path)
    np.testing.assert_array_equal(back.intensity, volume.intensity)
    np.testing.assert_array_equal(back.valid, volume.valid)
    np.testing.assert_array_equal(back.angles_deg, volume.angles_deg)
    assert back.geometry == volume.geometry
    assert back.window == volume.window
    assert back.flat_about == volume.flat_about


def test_voxel_units_go_into_what_needs_no_lengths(tmp_path: Path, result: Reconstruction) -> None:
    nxdata = pytest.importorskip("silx.io.nxdata")
    bare = replace(result, direct_basis=None, reciprocal_basis=None, q_vector=None, strain=None,
                   strain_sd=None, displacement=None, metadata={})  # fmt: skip
    for suffix in (".cxi", ".npz", ".nxs"):
        export(tmp_path / f"c{suffix}", bare)
    with h5py.File(tmp_path / "c.nxs") as file:
        assert nxdata.get_default(file).is_valid
    for suffix in (".vti", ".vts"):
        with pytest.raises(MissingMetadata, match="voxel units"):
            export(tmp_path / f"c{suffix}", bare)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    tmp_path: Path, result: Reconstruction, volume: DiffractionVolume
) -> None:
    empty = Reconstruction(np.zeros((0, 0, 0), np.complex64), np.zeros((0, 0, 0), bool), status="failed",
                           reason="too few points")  # fmt: skip
    with pytest.raises(InvalidInput, match="must be one of cxi"):
        export(tmp_path / "c.cxi", result, "mrc")
    with pytest.raises(InvalidInput, match="must end in"):
        export(tmp_path / "c.mrc", result)
    with pytest.raises(InvalidInput, match="must exist"):
        export(tmp_path / "nowhere" / "c.cxi", result)
    with pytest.raises(InvalidInput, match="too few points"):
        export(tmp_path / "c.cxi", empty)
    with pytest.raises(InvalidInput, match="not into vti"):
        export(tmp_path / "c.vti", result, volume=volume)
    with pytest.raises(InvalidInput, match="not into vts"):
        export_volume(tmp_path / "c.vts", volume)
    with pytest.raises(InvalidInput, match="same options"):
        export(
            tmp_path / "c.cxi",
            replace(result, density=result.density[:8], support=result.support[:8]),
            volume=volume,
        )
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c.cxi").write_text("what was there")
    broken = replace(result, parameters={"weights": object()}, progress=np.array([object()]))
    with pytest.raises(TypeError):
        export(tmp_path / "c.cxi", broken)
    assert (tmp_path / "c.cxi").read_text() == "what was there"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_suffix_names_its_format() -> None:
    assert {format_of(Path(f"x{suffix}")) for suffix in FORMATS.values()} == set(FORMATS)
    assert format_of(Path("x.h5")) == "nexus"
    assert format_of(Path("x.h5"), "cxi") == "cxi"


@pytest.mark.parametrize("suffix", FORMATS.values())
def test_a_sample_told_as_a_mapping_is_called_by_its_name(
    tmp_path: Path, result: Reconstruction, suffix: str
) -> None:
    export(tmp_path / f"c{suffix}", replace(result, metadata={"sample": {"name": "gold", "batch": 3}}))
    assert origin_in(tmp_path / f"c{suffix}")["sample"] == "gold"
