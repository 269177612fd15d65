import pytest

from bluesky_cdinn.device import choose_device
from bluesky_cdinn.errors import InvalidInput


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "meta", "cpu:zero"])
def test_unknown_devices_are_refused_by_name(name):
    with pytest.raises(InvalidInput, match="device"):
        choose_device(name)


def test_known_devices_are_chosen():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(InvalidInput, match="GPU here"):
        choose_device("cuda:99")
