import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bluesky_cdinn import weights as module
from bluesky_cdinn.errors import WeightsError
from bluesky_cdinn.weights import Weights, fill, load_weights, save_weights, shipped_weights

CONFIG = {"architecture": "small", "version": 1, "side": 8}


def network(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, width, 3), nn.BatchNorm3d(width), nn.Conv3d(width, 2, 1))


@pytest.fixture
def weights():
    return Weights(CONFIG, network().state_dict(), "sqrt", {"data": {"seed": 3}, "figures": [1.0, None]})


@pytest.fixture
def file(tmp_path, weights):
    path = tmp_path / "small-8.safetensors"
    save_weights(path, weights)
    return path


def test_weights_come_back_as_they_were(tmp_path, weights):
    path = tmp_path / "small-8.safetensors"
    digest = save_weights(path, weights)
    loaded = load_weights(path, architectures=["other", "small"], normalisation="sqrt", side=8)
    assert loaded.config == CONFIG
    assert loaded.card.items() >= weights.card.items()
    assert loaded.card["stored_as"] == "float32"
    assert loaded.name == "small-8"
    assert loaded.sha256 == digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.state.keys() == weights.state.keys()
    for name, tensor in loaded.state.items():
        assert torch.equal(tensor, weights.state[name])
        assert tensor.dtype == weights.state[name].dtype
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_the_bytes_round_and_no_more(tmp_path, weights, dtype, rounding):
    save_weights(tmp_path / "half.safetensors", weights, dtype)
    loaded = load_weights(tmp_path / "half.safetensors")
    for name, tensor in loaded.state.items():
        torch.testing.assert_close(tensor, weights.state[name], rtol=rounding, atol=1e-7)
        assert tensor.dtype in (torch.float32, torch.int64)


def test_a_network_is_filled_with_all_of_them(weights):
    other = network()
    nn.init.zeros_(other[0].weight)
    fill(other, weights)
    assert torch.equal(other[0].weight, weights.state["0.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("0.bias"), "0.bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra is unknown"),
        (lambda state: state.update({"0.bias": torch.zeros(7)}), r"0.bias must be \(4,\), is \(7,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_change_nothing(weights, change, message):
    state = {name: tensor + 1 for name, tensor in weights.state.items()}
    change(state)
    target = network()
    before = target[0].weight.clone()
    with pytest.raises(WeightsError, match=message):
        fill(target, replace(weights, state=state))
    assert torch.equal(target[0].weight, before)


def test_of_many_faults_the_first_are_named(weights):
    with pytest.raises(WeightsError, match=r"and \d more"):
        fill(network(width=6), weights)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"architectures": ["cdinn", "published"]}, "architecture cdinn or published .* is for small"),
        ({"normalisation": "log"}, "normalisation log .* is for sqrt"),
        ({"side": 64}, "grid 64 .* is for 8"),
    ],
)
def test_weights_for_something_else_are_refused(file, wanted, message):
    with pytest.raises(WeightsError, match=message):
        load_weights(file, **wanted)


def test_no_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(WeightsError, match="can be read"):
            load_weights(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.999])
def test_a_truncated_file_is_refused(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match="whole safetensors file"):
        load_weights(file)


@pytest.mark.parametrize("content", [b"hello", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}", b"\x80\x04K\x01."])
def test_another_kind_of_file_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(WeightsError):
        load_weights(file)


def test_a_pickle_is_refused_and_not_run(file, weights):
    torch.save(weights.state, file)
    with pytest.raises(WeightsError, match="whole safetensors file"):
        load_weights(file)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "cdinn package"),
        ({"format": "pt"}, "cdinn package"),
        ({"format": "cdinn-weights", "format_version": "2"}, "format version 1, it has 2"),
        ({"format": "cdinn-weights", "format_version": "1"}, "config and normalisation and card"),
        ({"config": "{", "normalisation": "sqrt", "card": "{}"}, "config .* must be JSON"),
        ({"config": "[" * 100_000, "normalisation": "sqrt", "card": "{}"}, "config .* must be JSON"),
        ({"config": "{}", "normalisation": "sqrt", "card": "[]"}, "card .* object, it is list"),
    ],
)
def test_metadata_that_do_not_say_what_it_is_are_refused(tmp_path, metadata, message):
    if metadata and "format" not in metadata:
        metadata = {"format": "cdinn-weights", "format_version": "1", **metadata}
    path = tmp_path / "odd.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata)
    with pytest.raises(WeightsError, match=message):
        load_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path, weights, value):
    weights.state["2.bias"][0] = value
    with pytest.raises(WeightsError, match=r"2.bias is not"):
        save_weights(tmp_path / "bad.safetensors", weights)
    assert not list(tmp_path.iterdir())
    metadata = {"format": "cdinn-weights", "format_version": "1", "normalisation": "sqrt"}
    metadata |= {"config": json.dumps(CONFIG), "card": "{}"}
    save_file(weights.state, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(WeightsError, match=r"finite weights, 2.bias"):
        load_weights(tmp_path / "bad.safetensors")


def test_what_float16_cannot_hold_is_not_written(tmp_path, weights):
    weights.state["0.weight"] *= 1e8
    with pytest.raises(WeightsError, match="finite in float16"):
        save_weights(tmp_path / "bad.safetensors", weights, "float16")


def test_a_file_beyond_reason_is_not_read(file, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(WeightsError, match="at most 100 bytes"):
        load_weights(file)


def test_a_card_must_be_plain_and_loses_what_json_lacks(tmp_path, weights):
    path = tmp_path / "w.safetensors"
    save_weights(path, replace(weights, card={"chi2": [float("nan"), 1.5]}))
    assert load_weights(path).card["chi2"] == [None, 1.5]
    with pytest.raises(WeightsError, match="the card must hold what JSON can"):
        save_weights(path, replace(weights, card={"chi2": torch.zeros(1)}))


def test_the_last_of_the_shipped_ones_is_taken(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(module.resources, "files", lambda package: tmp_path)
    assert shipped_weights() is None
    with pytest.raises(WeightsError, match="no weights ship"):
        load_weights()
    folder = tmp_path / "data" / "weights"
    folder.mkdir(parents=True)
    for name in ("a-64.safetensors", "b-64.safetensors", "card.md"):
        save_weights(folder / name, weights)
    assert shipped_weights() == folder / "b-64.safetensors"
    assert load_weights().name == "b-64"
