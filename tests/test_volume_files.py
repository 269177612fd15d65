"""Volumes in npz and CXI as other programs write them, and results written whole or not at all."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.records import Reconstruction
from bluesky_cdinn.volume_files import read_volume, write_reconstruction

SHAPE = (5, 6, 7)


@pytest.fixture
def counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(50, SHAPE).astype(np.float64)


def write_cxi(path: Path, data: np.ndarray, mask: np.ndarray | None = None, where: str = "data_1") -> Path:
    with h5py.File(path, "w") as file:
        file["entry_1/instrument_1/detector_1/data"] = data
        if where == "data_1":  # CXI: data_1/data links to the detector's
            file["entry_1/data_1/data"] = h5py.SoftLink("/entry_1/instrument_1/detector_1/data")
        if mask is not None:
            file["entry_1/instrument_1/detector_1/mask"] = mask
    return path


def test_npz_keeps_values_and_mask(tmp_path: Path, counts: np.ndarray) -> None:
    mask = counts > 45
    np.savez(tmp_path / "v.npz", intensity=counts, mask=mask)
    volume = read_volume(tmp_path / "v.npz")
    assert volume.intensity.dtype == np.float32
    np.testing.assert_array_equal(volume.intensity, np.where(mask, counts, 0))
    np.testing.assert_array_equal(volume.valid, mask)
    assert volume.history[0]["step"] == "read"


def test_npz_without_a_mask_is_valid_where_finite(tmp_path: Path, counts: np.ndarray) -> None:
    counts[1, 2, 3] = np.nan
    np.savez(tmp_path / "v.npz", intensity=counts)
    volume = read_volume(tmp_path / "v.npz")
    assert not volume.valid[1, 2, 3]
    assert volume.intensity[1, 2, 3] == 0
    assert volume.valid.sum() == volume.valid.size - 1


def test_negative_counts_of_a_subtracted_background_become_none(tmp_path: Path, counts: np.ndarray) -> None:
    np.savez(tmp_path / "v.npz", intensity=counts - 50)
    volume = read_volume(tmp_path / "v.npz")
    assert volume.valid.all()
    np.testing.assert_array_equal(volume.intensity, np.maximum(counts - 50, 0))
    assert volume.history[0]["negative"] == (counts < 50).sum()


def test_an_unsigned_detectors_largest_value_marks_a_gap(tmp_path: Path, counts: np.ndarray) -> None:
    frames = counts.astype(np.uint32)
    frames[:, 3] = np.iinfo(np.uint32).max
    np.savez(tmp_path / "v.npz", intensity=frames)
    assert not read_volume(tmp_path / "v.npz").valid[:, 3].any()


@pytest.mark.parametrize("where", ["data_1", "detector_1"])
@pytest.mark.parametrize("per_frame", [True, False])
def test_cxi_masks_what_its_bits_call_faulty(
    tmp_path: Path, counts: np.ndarray, where: str, per_frame: bool
) -> None:
    mask = np.zeros(SHAPE if per_frame else SHAPE[1:], dtype=np.uint32)
    mask[..., 2, 3] = 0x00000001  # invalid
    mask[..., 4, 4] = 0x00001000  # signal above background: a good pixel
    mask[..., 1, 1] = 0x00001008  # dead, whatever its signal
    volume = read_volume(write_cxi(tmp_path / "v.cxi", counts, mask, where))
    expected = np.ones(SHAPE, dtype=bool)
    expected[:, 2, 3] = expected[:, 1, 1] = False
    np.testing.assert_array_equal(volume.valid, expected)
    np.testing.assert_array_equal(volume.intensity, np.where(expected, counts, 0))


def test_content_counts_and_not_the_name(tmp_path: Path, counts: np.ndarray) -> None:
    np.savez(tmp_path / "v.npz", intensity=counts)
    (tmp_path / "v.npz").rename(tmp_path / "v.cxi")
    np.testing.assert_array_equal(read_volume(tmp_path / "v.cxi").intensity, counts)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"data": np.zeros(SHAPE)}, "must hold an array 'intensity'"),
        ({"intensity": np.zeros((4, 4))}, "real and 3D"),
        ({"intensity": np.zeros(SHAPE, dtype=complex)}, "real and 3D"),
        ({"intensity": np.zeros(SHAPE), "mask": np.ones((2, 2, 2))}, "mask"),
        ({"intensity": np.array([{}, {}], dtype=object)}, "plain arrays"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, arrays: dict, complaint: str) -> None:
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(InvalidInput, match=complaint):
        read_volume(tmp_path / "v.npz")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no volume")
    with pytest.raises(InvalidInput, match="neither"):
        read_volume(tmp_path / "notes.txt")
    with pytest.raises(InvalidInput, match="there is none"):
        read_volume(tmp_path / "absent.npz")
    with h5py.File(tmp_path / "empty.cxi", "w"):
        pass
    with pytest.raises(InvalidInput, match="must hold its volume at"):
        read_volume(tmp_path / "empty.cxi")


def test_a_result_is_written_with_all_its_numbers(tmp_path: Path) -> None:
    density = np.ones(SHAPE, dtype=np.complex64) * 1j
    result = Reconstruction(
        density=density,
        support=np.abs(density) > 0,
        chi2=0.01,
        timings_s={"prepare": 0.5},
        scalars={"agreement": 0.99},
        parameters={"seed": 3},
    )
    write_reconstruction(tmp_path / "out.npz", result)
    with np.load(tmp_path / "out.npz") as out:
        assert out["density"].dtype == np.complex64
        np.testing.assert_array_equal(out["density"], density)
        assert out["support"].dtype == bool
        assert float(out["chi2"]) == 0.01
        assert float(out["agreement"]) == 0.99
        assert json.loads(str(out["timings_s"])) == {"prepare": 0.5}
        assert json.loads(str(out["parameters"])) == {"seed": 3}


@pytest.mark.parametrize(
    "said", [{"window": 3}, {"window": [1, 2]}, {"flat_about": 0.5}, {"angles_deg": ["a"]}]
)
def test_what_is_said_of_a_volume_must_be_numbers(tmp_path, said):
    np.savez(tmp_path / "v.npz", intensity=np.ones((4, 4, 4)), **said)
    with pytest.raises(InvalidInput, match=next(iter(said))):
        read_volume(tmp_path / "v.npz")
