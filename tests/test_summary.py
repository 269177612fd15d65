"""What a plan returns of a reconstruction."""

import pickle
import threading

import pytest

from bluesky_cdinn.summary import ReconstructionSummary


class Holder:
    """Like a catalog, tied to its process."""

    def __init__(self):
        self.lock = threading.Lock()

    def load(self, uid):
        raise AssertionError(f"nothing loads {uid} here")


def test_it_travels_to_another_process_without_its_catalog():
    summary = ReconstructionSummary("raw", "processed", scalars={"chi2": 0.01}, _load=Holder().load)
    there = pickle.loads(pickle.dumps(summary))
    assert (there.raw_uid, there.processed_uid, there.scalars) == ("raw", "processed", {"chi2": 0.01})
    assert str(there) == str(summary)
    with pytest.raises(LookupError, match="without a catalog"):
        there.load()
