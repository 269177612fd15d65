"""Detector files that are missing, damaged, cut off or still open: what can be read is reconstructed."""

import h5py
import numpy as np
import pytest
from event_model import compose_run

from bluesky_cdinn.callbacks import LiveReconstruction
from bluesky_cdinn.errors import CdinnError, IncompleteScan
from bluesky_cdinn.frame_files import load_frames
from bluesky_cdinn.records import FrameReference, RockingCurve

POINTS = 12
FRAMES = np.random.default_rng(0).integers(1, 1000, (POINTS, 32, 24)).astype(np.uint16)
DATASET = "/entry/data"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "frames.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            DATASET, data=FRAMES, chunks=(1, 32, 24), compression="gzip", fletcher32=True, track_times=False
        )
    return path


def measure(live, path):
    """Send the documents of a scan whose frames lie in a file; return the result to come."""
    cdi = {"detector": "cam", "rocking_motor": "th"}
    run = compose_run(metadata={"purpose": "rocking_curve", "motors": ["th"], "cdi": cdi})
    image = {"source": "", "dtype": "array", "shape": [32, 24], "dtype_numpy": "<u2", "external": "STREAM:"}
    stream = run.compose_descriptor(
        name="primary",
        data_keys={"cam": image, "th": {"source": "", "dtype": "number", "shape": []}},
        object_keys={"cam": ["cam"], "th": ["th"]},
    )
    resource = run.compose_stream_resource(
        data_key="cam",
        mimetype="application/x-hdf5",
        uri=f"file://localhost{path}",
        parameters={"dataset": DATASET, "chunk_shape": (1, 32, 24)},
    )
    datum = resource.compose_stream_datum(
        indices={"start": 0, "stop": POINTS},
        seq_nums={"start": 1, "stop": POINTS + 1},
        descriptor=stream.descriptor_doc,
    )
    live("start", run.start_doc)
    live("descriptor", stream.descriptor_doc)
    live("stream_resource", resource.stream_resource_doc)
    for point in range(POINTS):
        event = stream.compose_event(data={"th": 0.1 * point}, timestamps={"th": 0.0}, validate=False)
        live("event", event)
    live("stream_datum", datum)
    live("stop", run.compose_stop())
    return live.result(run.start_doc["uid"])


def damage_frame(path, index):
    """Overwrite what the disk holds of one frame."""
    with h5py.File(path, "r") as file:
        stored = file[DATASET].id.get_chunk_info(index)
    with path.open("r+b") as raw:
        raw.seek(stored.byte_offset)
        raw.write(b"\xff" * stored.size)


@pytest.fixture(scope="module")
def live_and_worker(tmp_path_factory):
    """Share one warm worker that reads files and adds up what it got."""
    with pytest.MonkeyPatch.context() as patch:
        yield from _live_and_worker(tmp_path_factory.mktemp("spool"), patch)


def _live_and_worker(spool, patch):
    import os
    from pathlib import Path

    from bluesky_cdinn.settings import Settings, TiledSettings
    from bluesky_cdinn.worker import ReconstructionWorker

    patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    settings = Settings(tiled=TiledSettings(uri="http://127.0.0.1:9", api_key="none"), spool=spool)
    with (
        ReconstructionWorker(entry="fault_jobs:read_files") as worker,
        LiveReconstruction(settings=settings, worker=worker) as live,
    ):
        yield live


def test_one_damaged_frame_is_lost_alone(live_and_worker, path):
    damage_frame(path, 5)
    summary = measure(live_and_worker, path).result(60)
    assert summary.status == "success"
    assert summary.scalars["total"] == np.delete(FRAMES, 5, axis=0).sum()
    assert summary.load().metadata["unreadable_points"] == [5]


def truncated(path):
    with path.open("r+b") as raw:
        raw.truncate(path.stat().st_size // 2)


def of_text(path):
    path.write_text("this was never HDF5")


def a_folder(path):
    path.unlink()
    path.mkdir()


def emptied(path):
    path.write_bytes(b"")


def without_the_dataset(path):
    with h5py.File(path, "w") as file:
        file["other"] = FRAMES


def unlinked(path):
    path.unlink()


def shut_off(path):
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize(
    "harm", [truncated, of_text, a_folder, emptied, without_the_dataset, unlinked, shut_off]
)
def test_a_file_that_cannot_be_read_gives_a_failed_run_that_names_it(live_and_worker, path, harm):
    harm(path)
    summary = measure(live_and_worker, path).result(60)
    assert summary.status == "failed"
    assert str(path) in summary.reason
    assert summary.load().status == "failed"


def test_a_file_that_is_still_open_for_writing(live_and_worker, tmp_path):
    """What the detector has flushed is there; it unstages after the stop document."""
    with h5py.File(tmp_path / "open.h5", "w", libver="latest") as file:
        data = file.create_dataset(
            DATASET, FRAMES.shape, np.uint16, chunks=(1, 32, 24), maxshape=(None, 32, 24)
        )
        file.swmr_mode = True
        data[:] = FRAMES
        data.flush()
        summary = measure(live_and_worker, tmp_path / "open.h5").result(60)
    assert summary.scalars["total"] == FRAMES.sum()


def test_a_frame_that_was_never_written_is_no_frame_of_zeros(live_and_worker, path):
    """HDF5 gives zeros for it, as if the detector had counted nothing."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset(DATASET, FRAMES.shape, np.uint16, chunks=(1, 32, 24))
        data[:9] = FRAMES[:9]
    summary = measure(live_and_worker, path).result(60)
    assert summary.scalars["total"] == FRAMES[:9].sum()
    assert summary.load().metadata["unreadable_points"] == [9, 10, 11]


def test_random_damage_gives_frames_or_says_why_not(path):
    rng = np.random.default_rng(0)
    content = path.read_bytes()
    references = tuple(FrameReference(path, DATASET, index) for index in range(POINTS))
    curve = RockingCurve(references, np.arange(float(POINTS)))
    outcomes = set()
    for _ in range(300):
        spoilt = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 40)):
            spoilt[place] = rng.integers(0, 256)
        path.write_bytes(spoilt)
        try:
            loaded = load_frames(curve, patience_s=0)
        except CdinnError:
            outcomes.add("refused")
        else:
            assert len(loaded.frames) + len(loaded.metadata.get("unreadable_points", [])) == POINTS
            outcomes.add("read")
    assert outcomes == {"read", "refused"}


def test_sizes_beyond_all_memory_are_unreadable(path):
    with h5py.File(path, "w") as file:
        data = file.create_dataset(DATASET, (POINTS, 2**24, 2**24), np.uint16, chunks=(1, 64, 64))
        data[:, 0, 0] = 1
    references = tuple(FrameReference(path, DATASET, index) for index in range(POINTS))
    with pytest.raises(IncompleteScan, match="Unable to allocate"):
        load_frames(RockingCurve(references, np.arange(float(POINTS))), patience_s=0)
