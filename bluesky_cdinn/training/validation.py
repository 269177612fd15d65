"""Crystals that the learning curve is judged on: never trained on, the same ones each time."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from bluesky_cdinn.training.feed import step_generator
from bluesky_cdinn.training.mixture import Mixture
from bluesky_cdinn.training.trainee import Objective

# Random numbers for these are drawn as for no training step, whatever its seed.
PURPOSE = 2
# Phase range, rad, peak to valley.
CLASSES = {"weak": (0.3, 1.6), "medium": (1.6, 3.1), "strong": (3.1, 6.3)}


def validation(
    source: Mixture, objective: Objective, device: torch.device, crystals: int = 32
) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that judges a network on procedural crystals of each strength of strain.

    Parameters
    ----------
    source
        As in training; the phase range is replaced, and stored crystals are left out.
    objective
        Gives loss and scores.
    device
        Of the network.
    crystals
        Of each class.

    Returns
    -------
    callable
        Gives ``class/score`` and ``class/loss``, means over the crystals.
    """

    @torch.no_grad()
    def judge(network: nn.Module) -> dict[str, float]:
        figures = {}
        for number, (name, phase_range) in enumerate(CLASSES.items()):
            recipe = replace(source.crystals, phase_range_rad=phase_range)
            alike = replace(source, crystals=recipe, atomistic=None)
            totals: dict[str, float] = {}
            parts = max(1, crystals // source.batch)
            for part in range(parts):
                drawn = alike(step_generator(number, 0, part, purpose=PURPOSE)).to(device)
                loss, scores = objective(network, drawn, step_generator(number, 1, part, device, PURPOSE))
                for score, value in {"loss": float(loss), **scores}.items():
                    totals[score] = totals.get(score, 0.0) + value / parts
            figures |= {f"{name}/{score}": value for score, value in totals.items()}
        return figures

    return judge
