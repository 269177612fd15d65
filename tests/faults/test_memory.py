"""Out of memory: less is computed, and the result says so. The limits are the kernel's own."""

import numpy as np
import pytest
import torch
from crystals import crystal_and_counts

from bluesky_cdinn.errors import ReconstructionFailed
from bluesky_cdinn.fallback import is_out_of_memory, lesser, within_memory
from bluesky_cdinn.records import Reconstruction, RockingCurve
from bluesky_cdinn.settings import ReconstructionOptions

MB = 1_000_000


def a_crystal(side, spare):
    _, counts = crystal_and_counts(1, 1.0, (side, side, side))
    return RockingCurve(counts, np.arange(float(side)), metadata={"spare": spare})


def test_fewer_starts_are_taken_where_all_do_not_fit(make_worker):
    options = ReconstructionOptions(starts=64, start="autocorrelation")
    worker = make_worker("fault_jobs:short_of_memory", options)
    result = worker.submit(a_crystal(32, 20 * MB)).result(120)
    failed = result.parameters["fallback"]
    assert [attempt["starts"] for attempt in failed][:2] == [64, 32]
    assert all("memory" in attempt["reason"] for attempt in failed)
    assert result.parameters["starts"] == failed[-1]["starts"] // 2
    assert result.chi2 < 1e-3


def test_what_fits_nowhere_is_told_with_the_way_out(make_worker):
    options = ReconstructionOptions(starts=4, start="autocorrelation")
    worker = make_worker("fault_jobs:short_of_memory", options)
    with pytest.raises(ReconstructionFailed, match=r"memory ran out 3 times.*max_shape"):
        worker.submit(a_crystal(96, MB)).result(120)


def test_a_gpu_gives_way_to_the_cpu(monkeypatch):
    asked = []

    def full_gpu(options):
        asked.append((options.device, options.starts))
        if options.device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        empty = np.zeros((0, 0, 0))
        return Reconstruction(empty.astype(np.complex64), empty.astype(bool), parameters={"device": "cpu"})

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    parameters = within_memory(full_gpu, ReconstructionOptions(device="cuda:1", starts=5)).parameters
    assert asked == [("cuda:1", 5), ("cuda:1", 2), ("cpu", 5)]
    assert [(a["device"], a["starts"]) for a in parameters["fallback"]] == asked[:2]
    assert parameters["device"] == "cpu"


@pytest.mark.parametrize(("starts", "expected"), [(1, [1]), (2, [2, 1]), (4, [4, 2, 1]), (9, [9, 4, 2, 1])])
def test_less_and_less_is_asked(starts, expected):
    options = ReconstructionOptions(device="cpu", starts=starts)
    assert [less.starts for less in lesser(options)] == expected


def test_the_first_attempt_is_what_was_asked_and_nothing_is_noted():
    options = ReconstructionOptions(device="cpu")
    assert within_memory(lambda less: less, options) == options


@pytest.mark.parametrize(
    ("error", "so"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_say_that_memory_is_full(error, so):
    assert is_out_of_memory(error) is so


def test_any_other_error_is_not_tried_again():
    asked = []

    def broken(options):
        asked.append(options)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        within_memory(broken, ReconstructionOptions(device="cpu"))
    assert len(asked) == 1
