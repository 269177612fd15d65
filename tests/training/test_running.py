"""From a preset to packaged weights, as the commands do it."""

import json
import os
import signal
import sys

import pytest
import torch
from typer.testing import CliRunner

from bluesky_cdinn import cli_training
from bluesky_cdinn.cli_training import app, stop_request
from bluesky_cdinn.errors import InvalidInput, TrainingFailed, WeightsError
from bluesky_cdinn.training.checkpoint import load_checkpoint
from bluesky_cdinn.training.curve import read_curve
from bluesky_cdinn.training.distributed import Ranks
from bluesky_cdinn.training.packaging import package, summary, thinned
from bluesky_cdinn.training.presets import changed, load_preset
from bluesky_cdinn.training.running import begin, go_on, read_run
from bluesky_cdinn.training.subjects import start_from
from bluesky_cdinn.weights import load_weights


def call(*arguments):
    """Run a command; return what it answered."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train for seconds."""
    folder = tmp_path_factory.mktemp("run")
    call("train", "--preset", "smoke", "--folder", folder, "--seed", "3", "--device", "cpu", "--json")
    return folder


@pytest.fixture(scope="module")
def weights(run):
    path = run / "small-16.safetensors"
    call("package", run, "-o", path, "--stored-as", "float32", "--json")
    return path


def test_a_run_says_what_it_is_and_how_it_went(run):
    said = read_run(run)
    assert said["preset"]["training"]["seed"] == 3
    assert said["preset"]["name"] == "smoke"
    assert [session["from_step"] for session in said["sessions"]] == [0]
    lines = read_curve(run)
    assert [line["step"] for line in lines] == [2, 4]
    assert all(0 < value <= 1 for value in lines[-1]["held_out"].values())


def test_packaged_weights_are_the_averaged_ones_and_tell_where_they_come_from(run, weights):
    packaged = load_weights(weights, architectures=["cdinn-unrolled"], side=16)
    average = load_checkpoint(run)["average"]
    for name, tensor in packaged.state.items():
        assert torch.equal(tensor, average[name])
    card = packaged.card
    assert card["training"]["crystals"] == 8
    assert card["training"]["options"]["seed"] == 3
    assert card["data"]["conditions"]["counts"] == [1e3, 1e7]
    assert card["learning_curve"][-1]["step"] == 4
    text = weights.with_suffix(".md").read_text()
    for fact in (packaged.sha256, "4 steps", "## Limits", f"{card['parameters']:,} parameters"):
        assert fact in text
    assert str(run) not in json.dumps(card) + text


def test_packaged_weights_make_a_start(weights):
    from bluesky_cdinn.training.evaluation import score_start
    from bluesky_cdinn.training.held_out import procedural_case

    case = procedural_case("one", 1, 1.0, 1e5).at(32)
    rows = score_start(start_from(weights), [case])
    (group,) = summary(rows)
    assert (group["kind"], group["strain"], group["counts"], group["crystals"]) == (
        "procedural",
        "weak",
        1e5,
        1,
    )
    assert 0 < group["correlation"] <= 1


def test_figures_that_are_no_numbers_are_left_out_of_the_file(tmp_path, monkeypatch):
    row = {"case": "one", "kind": "procedural", "strain": "weak", "counts": 1e4, "chi2": 0.9, "iou": 0.0}
    row |= {"phase_rmse": float("nan"), "correlation": 0.1, "found": False}
    monkeypatch.setattr(cli_training, "_rows", lambda *_: [row])
    call("evaluate", "any.safetensors", "-o", tmp_path / "rows.json", "--json")
    assert "NaN" not in (tmp_path / "rows.json").read_text()
    (kept,) = json.loads((tmp_path / "rows.json").read_text())
    assert kept == {name: value for name, value in row.items() if name != "phase_rmse"}


def test_a_run_goes_on_with_more_budget_and_from_other_weights(tmp_path, run, weights):
    preset = changed(load_preset("smoke"), network={"side": 24}, training={"steps": 2})
    steps = list(begin(tmp_path / "next", preset, Ranks(), warm_start=weights))
    assert [p.step for p in steps] == [1, 2]
    assert read_run(tmp_path / "next")["warm_start"]["sha256"] == load_weights(weights).sha256
    answer = call("train", "--resume", "--folder", tmp_path / "next", "--steps", "3", "--json")
    assert answer["step"] == 3
    said = read_run(tmp_path / "next")
    assert said["preset"]["training"]["steps"] == 3
    assert [session["from_step"] for session in said["sessions"]] == [0, 2]
    packaged = package(tmp_path / "next", tmp_path / "w.safetensors", "bfloat16")
    assert packaged.card["warm_start"]["name"] == "small-16"
    assert "It began with the weights small-16" in (tmp_path / "w.md").read_text()


def test_a_warm_start_begins_where_those_weights_were(tmp_path, weights):
    # The first step's learning rate is 0.
    preset = changed(load_preset("smoke"), training={"steps": 1, "evaluate_every": 100})
    list(begin(tmp_path, preset, Ranks(), warm_start=weights))
    state, packaged = load_checkpoint(tmp_path)["model"], load_weights(weights)
    assert all(torch.equal(tensor, packaged.state[name]) for name, tensor in state.items())


def test_weights_of_another_network_are_not_begun_with(tmp_path, weights):
    with pytest.raises(WeightsError, match="architecture paper"):
        list(begin(tmp_path, load_preset("paper"), Ranks(), warm_start=weights))
    with pytest.raises(WeightsError, match="must fit the network"):
        list(begin(tmp_path, load_preset("cpu"), Ranks(), warm_start=weights))
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_run_is_neither_resumed_nor_packaged(tmp_path):
    for attempt in (
        lambda: list(go_on(tmp_path, Ranks())),
        lambda: package(tmp_path, tmp_path / "w.safetensors"),
    ):
        with pytest.raises(TrainingFailed, match="must hold run"):
            attempt()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --preset"),
        (["--preset", "smoke", "--resume"], "either --preset"),
        (["--resume", "--seed", "1"], "with --preset only"),
        (["--preset", "smoke", "--steps", "1", "--hours", "1"], "not both"),
        (["--preset", "smoke", "--device", "tpu"], "device must be"),
        (["--preset", "none"], "a preset must be"),
    ],
)
def test_commands_that_contradict_themselves_are_refused(tmp_path, arguments, message):
    result = CliRunner().invoke(app, ["train", "--folder", str(tmp_path), *arguments])
    assert result.exit_code == 1
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_begun_over_another(run):
    with pytest.raises(InvalidInput, match="resume it"):
        list(begin(run, load_preset("smoke"), Ranks()))


def test_a_long_curve_is_thinned_to_its_judged_lines_and_keeps_its_end():
    lines = [{"step": i, **({"held_out": {}} if i % 10 == 0 else {})} for i in range(1, 1001)]
    kept = thinned(lines, 20)
    assert len(kept) == 20
    assert kept[-1]["step"] == 1000
    assert all("held_out" in line for line in kept)
    assert [line["step"] for line in thinned(lines[:9], 20)] == list(range(1, 10))


def test_without_tensorboard_its_absence_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    command = ["train", "--preset", "smoke", "--folder", str(tmp_path), "--tensorboard"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "bluesky-cdinn[training]" in result.stderr


def test_a_signal_asks_once_and_kills_the_second_time():
    before = signal.getsignal(signal.SIGTERM)
    with stop_request() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is before
    with stop_request() as asked:
        assert asked == []
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
