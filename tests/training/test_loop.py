import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from small import JointSource, SmallNetwork, objective, plain_objective, source

from bluesky_cdinn.errors import CdinnWarning, InvalidInput, TrainingFailed
from bluesky_cdinn.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from bluesky_cdinn.training.curve import read_curve
from bluesky_cdinn.training.loop import train
from bluesky_cdinn.training.options import TrainingOptions

PROGRAM = [sys.executable, str(Path(__file__).with_name("small.py"))]
AS_THE_PROGRAM = {"steps": 20, "optimiser": "adamw"}
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_thread():
    """Sum in one order: the same bits everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def options(**given):
    return TrainingOptions(**{"steps": 30, "rate": 1e-2, "log_every": 10} | given)


def finish(folder, network=None, *, loss=objective, batches=source, resume=False, **given):
    """Train to the end; return the network and all progress."""
    network = network or SmallNetwork()
    return network, list(train(network, batches, loss, options(**given), folder, resume=resume))


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_learns(tmp_path, optimiser, precision):
    _, progress = finish(tmp_path, steps=80, optimiser=optimiser, precision=precision)
    assert progress[-1].loss < 0.1 * progress[0].loss
    assert [p.step for p in progress] == list(range(1, 81))
    assert progress[-1].crystals == 80 * 4


def test_same_seed_same_weights_and_another_seed_others(tmp_path):
    (once, _), (again, _), (other, _) = (
        finish(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert_same(once.state_dict(), again.state_dict())
    assert not torch.equal(once.first.weight, other.first.weight)


def test_a_run_killed_at_any_moment_ends_as_an_unbroken_one(tmp_path):
    whole, _ = finish(tmp_path / "whole", **AS_THE_PROGRAM)
    broken = tmp_path / "broken"
    # It saves after each step, so that most kills hit the writing of a checkpoint.
    for first, until in (("new", 5), ("resume", 12)):
        child = subprocess.Popen(
            [*PROGRAM, broken, "20", first], env=ALONE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= until:
                child.send_signal(signal.SIGKILL)
                break
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
    network, _ = finish(broken, **AS_THE_PROGRAM, resume=True)
    assert_same(whole.state_dict(), network.state_dict())
    first, second = load_checkpoint(tmp_path / "whole"), load_checkpoint(broken)
    assert_same(first["average"], second["average"])
    assert first["step"] == second["step"] == 20
    steps = [line["step"] for line in read_curve(broken)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 20
    assert not list(broken.glob(".*"))


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_closing_the_generator_keeps_what_was_done(tmp_path, optimiser):
    whole, _ = finish(tmp_path / "whole", optimiser=optimiser)
    steps = train(SmallNetwork(), source, objective, options(optimiser=optimiser), tmp_path / "run")
    for progress in steps:
        if progress.step == 7:
            break
    steps.close()
    assert load_checkpoint(tmp_path / "run")["step"] == 7
    network, progress = finish(tmp_path / "run", optimiser=optimiser, resume=True)
    assert progress[0].step == 8
    assert_same(whole.state_dict(), network.state_dict())


def test_a_stop_on_request_ends_and_keeps(tmp_path):
    asked = itertools.count()
    steps = train(SmallNetwork(), source, objective, options(), tmp_path, stop=lambda: next(asked) >= 3)
    assert len(list(steps)) == 3
    assert load_checkpoint(tmp_path)["step"] == 3


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    steps = train(SmallNetwork(), source, objective, options(save_every_s=0), tmp_path)
    for _ in itertools.islice(steps, 9):
        pass
    steps.close()
    before, last = checkpoints(tmp_path)
    content = last.read_bytes()
    for damaged in (content[: len(content) // 2], b"", flipped(content)):
        last.write_bytes(damaged)
        with pytest.warns(CdinnWarning, match=last.name):
            assert load_checkpoint(tmp_path)["step"] == int(before.stem[-9:])
    before.unlink()
    with pytest.warns(CdinnWarning), pytest.raises(TrainingFailed, match="none of its 1"):
        load_checkpoint(tmp_path)


def flipped(content):
    """Return bytes with one bit of a tensor changed."""
    place = content.index(b"/data/0") + 150
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_run_is_not_begun_over_another_nor_resumed_from_nothing(tmp_path):
    finish(tmp_path, steps=3)
    with pytest.raises(InvalidInput, match="has one"):
        finish(tmp_path, steps=3)
    with pytest.raises(TrainingFailed, match="holds none"):
        finish(tmp_path / "empty", resume=True)


def test_another_network_or_optimiser_is_not_resumed(tmp_path):
    finish(tmp_path, steps=3, optimiser="muon")
    with pytest.raises(TrainingFailed, match="another network or optimiser"):
        finish(tmp_path, steps=3, optimiser="adamw", resume=True)
    with pytest.raises(TrainingFailed, match="another network or optimiser"):
        finish(tmp_path, torch.nn.Conv3d(1, 8, 3), resume=True)


def test_more_budget_goes_on_earlier_in_the_schedule_and_warms_up_again(tmp_path):
    _, first = finish(tmp_path, steps=40, warm_up=0.1)
    _, second = finish(tmp_path, steps=80, warm_up=0.1, resume=True)
    assert first[-1].rate < 1e-4
    assert second[0].step == 41
    rates = [p.rate for p in second]
    assert rates[0] == 0
    peak = rates.index(max(rates))
    assert 4 <= peak <= 9
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) < 0.5 * 1e-2


def test_no_more_budget_is_done_at_once(tmp_path):
    finish(tmp_path, steps=5)
    _, progress = finish(tmp_path, steps=5, resume=True)
    assert progress == []


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_hours_end_it_over_all_sessions(tmp_path, clock):
    hours = 0.6 / 3600
    steps = train(SmallNetwork(), source, objective, options(steps=None, hours=hours, clock=clock), tmp_path)
    for progress in steps:
        if progress.share > 0.5:
            break
    steps.close()
    _, rest = finish(tmp_path, steps=None, hours=hours, clock=clock, resume=True)
    assert rest[0].seconds > 0.3
    assert 0.5 < rest[-1].seconds < 1.2
    # The clock is looked at once more after the last step.
    assert 0.99 < rest[-1].share < 2


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path):
    network = SmallNetwork()
    seen = []

    def sometimes(model, batch, generator):
        loss, scores = objective(model, batch, generator)
        return loss * (torch.nan if len(seen) == 4 else 1), scores

    for progress in train(network, source, sometimes, options(steps=10), tmp_path):
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        assert progress.skipped == (progress.step > 4)
    assert_same(seen[4], seen[3])
    assert not torch.equal(seen[5]["first.weight"], seen[4]["first.weight"])
    assert all(line["loss"] > 0 for line in read_curve(tmp_path))


def test_training_that_diverges_says_so(tmp_path):
    def never(model, batch, generator):
        return objective(model, batch, generator)[0] * torch.inf, {}

    with pytest.raises(TrainingFailed, match="6 steps in a row"):
        finish(tmp_path, loss=never, patience=6)


def test_the_learning_curve_holds_means_and_held_out_figures(tmp_path):
    judged = []

    def held_out(network):
        judged.append(not network.training)
        return {"chi2": float(network.last.bias.detach())}

    steps = train(SmallNetwork(), source, objective, options(evaluate_every=15), tmp_path, held_out=held_out)
    progress = list(steps)
    lines = read_curve(tmp_path)
    assert [line["step"] for line in lines] == [10, 15, 20, 30]
    assert lines[0]["loss"] == pytest.approx(sum(p.loss for p in progress[:10]) / 10)
    assert lines[1]["scores"]["error"] == pytest.approx(sum(p.scores["error"] for p in progress[10:15]) / 5)
    assert [line["step"] for line in lines if "held_out" in line] == [15, 30]
    assert judged == [True, True]
    assert progress[14].held_out == lines[1]["held_out"]


def test_lines_of_steps_that_are_taken_again_are_dropped(tmp_path):
    steps = train(SmallNetwork(), source, objective, options(log_every=2), tmp_path)
    for progress in steps:
        if progress.step == 9:
            break
    steps.close()
    with (tmp_path / "curve.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 12, "loss": 1.0}) + '\n{"step": 14, "lo')
    finish(tmp_path, log_every=2, resume=True)
    steps = [line["step"] for line in read_curve(tmp_path)]
    assert steps == [2, 4, 6, 8, 9, *range(10, 31, 2)]


def test_tensorboard_gets_the_curve(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from bluesky_cdinn.training.curve import tensorboard

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        opened = functools.partial(tensorboard, tmp_path)
        steps = train(SmallNetwork(), source, objective, options(), tmp_path, scalars=opened)
        assert len(list(steps)) == 30
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20, 30]
    assert {"loss", "rate", "scores/error"} <= set(events.Tags()["scalars"])


def test_two_processes_train_one_network_as_one_would_on_both_their_batches(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    done = subprocess.run(
        [*command, PROGRAM[1], tmp_path / "both", "12", "new"], env=ALONE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / "both" / f"rank{rank}.pt") for rank in range(2))
    assert_same(first, second)
    # Both began with the first one's weights, though each drew its own.
    joint, progress = finish(
        tmp_path / "joint",
        loss=plain_objective,
        batches=JointSource(seed=0, size=2),
        steps=12,
        optimiser="adamw",
    )
    for name, tensor in joint.state_dict().items():
        torch.testing.assert_close(tensor, first[name], rtol=1e-4, atol=1e-5)
    assert load_checkpoint(tmp_path / "both")["crystals"] == progress[-1].crystals == 12 * 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hours": 1.0}, "of steps or hours"),
        ({"steps": None}, "of steps or hours"),
        ({"steps": 0}, "steps must be above 0"),
        ({"rate": float("nan")}, "rate must be above 0"),
        ({"warm_up": 0.0}, "warm_up must be a share"),
        ({"optimiser": "sgd"}, "optimiser must be muon or adamw, got 'sgd'"),
        ({"workers": -1}, "workers must be 0 or more"),
    ],
)
def test_options_that_mean_nothing_are_refused(wrong, message):
    with pytest.raises(InvalidInput, match=message):
        options(**wrong)


def test_a_checkpoint_that_cannot_be_written_is_told_and_harms_no_other(tmp_path, monkeypatch):
    finish(tmp_path, steps=3)
    before = checkpoints(tmp_path)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingFailed, match="No space left"):
        save_checkpoint(tmp_path, 4, {})
    assert checkpoints(tmp_path) == before
    assert not list(tmp_path.glob(".*"))
