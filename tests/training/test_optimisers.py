import math

import pytest
import torch
from small import SmallNetwork
from torch import nn

from bluesky_cdinn.training.ema import AveragedModel
from bluesky_cdinn.training.optimisers import KernelMuon, make_optimisers, set_rate
from bluesky_cdinn.training.schedule import Budget, Clock, rate_factor


def with_gradients(network):
    torch.manual_seed(1)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_weight_is_moved_by_one_optimiser(name):
    network = with_gradients(SmallNetwork())
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    optimisers = make_optimisers(network, name, 1e-3, 0.01)
    assert len(optimisers) == (2 if name == "muon" else 1)
    for optimiser in optimisers:
        optimiser.step()
    for key, tensor in network.state_dict().items():
        change = (tensor - before[key]).abs()
        assert 0 < float(change.max()) < 1e-2, key
    moved = sum(p.numel() for o in optimisers for group in o.param_groups for p in group["params"])
    assert moved == sum(p.numel() for p in network.parameters())
    for optimiser in optimisers:
        optimiser.zero_grad()
    assert all(p.grad is None for p in network.parameters())


def test_muon_turns_kernels_as_it_turns_matrices():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(8, 6, 3, 3, 3))
    matrix = nn.Parameter(kernel.detach().clone().flatten(1))
    ours = KernelMuon([kernel], 0.1, 0.01)
    theirs = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        kernel.grad = torch.randn_like(kernel)
        matrix.grad = kernel.grad.flatten(1)
        ours.step()
        theirs.step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_muons_step_is_balanced_in_all_directions_and_as_large_as_adamws():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.zeros(16, 8, 3, 3, 3))
    kernel.grad = torch.randn(16, 8, 3, 3, 3) * torch.logspace(-1, 1, 16)[:, None, None, None, None]
    spread = torch.linalg.svdvals(kernel.grad.flatten(1))
    KernelMuon([kernel], 1e-2, 0.0).step()
    step = kernel.detach().flatten(1)
    values = torch.linalg.svdvals(step)
    # Five Newton-Schulz iterations bring all singular values near 1, and AdamW's steps are 0.2 rate rms.
    assert values[0] / values[-1] < 2 < spread[0] / spread[-1]
    assert float(step.square().mean().sqrt()) == pytest.approx(0.2 * 1e-2, rel=0.2)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_only_kernels_decay(name):
    network = SmallNetwork()
    for parameter in network.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    for optimiser in make_optimisers(network, name, 0.1, 0.5):
        optimiser.step()
    for key, tensor in network.state_dict().items():
        expected = 0.95 if key in ("first.weight", "wide.weight", "last.weight") else 1.0
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected))


def test_the_rate_is_set_everywhere():
    optimisers = make_optimisers(SmallNetwork(), "muon", 1.0, 0.0)
    set_rate(optimisers, 0.25)
    assert {group["lr"] for optimiser in optimisers for group in optimiser.param_groups} == {0.25}


@pytest.mark.parametrize("share", [0.03, 0.2])
def test_the_averages_mean_age_is_the_same_share_of_any_run(share):
    model = nn.BatchNorm1d(1)
    average = AveragedModel(model, share)
    for step in range(1, 2001):
        model.weight.data.fill_(step)
        model.num_batches_tracked.fill_(step)
        average.update(model)
        if step == 1:
            assert average.model.weight == 1
        if step in (500, 2000):
            age = 1 - float(average.model.weight) / step
            assert age == pytest.approx(share, rel=0.05)
    assert average.model.num_batches_tracked == 2000
    assert not average.model.training
    assert not average.model.weight.requires_grad


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    rates = [rate_factor(step / 1000, 0.05) for step in range(1001)]
    peak = rates.index(max(rates))
    assert rates[0] == rates[-1] == 0
    assert peak == 50
    assert rates[peak] > 0.99
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rate_factor(0.5, 0.05) == pytest.approx(0.5)


def test_the_rate_warms_up_where_a_new_budget_begins():
    assert rate_factor(0.4, 0.1, since=0.4) == 0
    assert rate_factor(0.45, 0.1, since=0.4) == pytest.approx(0.25 * (1 + math.cos(0.45 * math.pi)))
    assert rate_factor(0.6, 0.1, since=0.4) == rate_factor(0.6, 0.1)


def test_budgets_are_of_steps_or_of_seconds():
    assert Budget(steps=200).share(50, 1e6) == 0.25
    assert Budget(seconds=200).share(10**6, 50) == 0.25


@pytest.mark.parametrize("kind", ["wall", "cpu"])
def test_clocks_go_on_from_earlier_sessions(kind):
    clock = Clock(kind, before=100)
    first = clock.seconds()
    sum(range(200_000))
    assert 100 <= first < clock.seconds() < 110
