"""Averaged weights: what is evaluated and packaged."""

import copy

import torch
from torch import nn


class AveragedModel:
    """A copy of a model whose weights are the average of the model's over the last part of training.

    The average's profile is a power of time (Karras et al. 2024, Analyzing and Improving the Training
    Dynamics of Diffusion Models, section 3.1): at any moment its mean age is the same share of the steps so
    far, so that neither short nor long nor prolonged runs need a constant of their own. Step ``t`` does

        average <- beta average + (1 - beta) weights,    beta = (1 - 1 / t)**(1 / share - 1)

    Parameters
    ----------
    model
        Whose weights are averaged.
    share
        The mean age as a share of the steps.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self.share = share
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's weights after a step; the first are taken as they are."""
        self.steps += 1
        gain = 1 - (1 - 1 / self.steps) ** (1 / self.share - 1)
        ours, theirs = self.model.state_dict(), model.state_dict()
        for name, tensor in theirs.items():
            if tensor.is_floating_point():
                ours[name].lerp_(tensor, gain)
            else:
                ours[name].copy_(tensor)
