"""What can be trained: each architecture with its objective, and with the start that it makes."""

from pathlib import Path

from torch import nn

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.network import ARCHITECTURES, NORMALISATION, NetworkConfig, build
from bluesky_cdinn.network_start import network_start
from bluesky_cdinn.starts import Start
from bluesky_cdinn.training.objective import objective
from bluesky_cdinn.training.paper_network import SIDE as PAPER_SIDE
from bluesky_cdinn.training.paper_network import PaperNetwork, paper_objective, paper_start
from bluesky_cdinn.training.trainee import Objective
from bluesky_cdinn.weights import fill, load_weights

# The published network, trained for comparison; it is not among those that ship.
PAPER, PAPER_NORMALISATION = "paper", "magnitude over its maximum"


def subject(config: NetworkConfig) -> tuple[nn.Module, Objective]:
    """Return a new network of a configuration, and what it is asked for.

    Raises
    ------
    InvalidInput
        There is no such architecture, or it can't work on that grid.
    """
    if config.architecture == PAPER:
        if config.side != PAPER_SIDE:
            raise InvalidInput(f"the published network's grid must be {PAPER_SIDE}^3, got side {config.side}")
        return PaperNetwork(), paper_objective
    if config.architecture not in ARCHITECTURES:
        known = ", ".join([*ARCHITECTURES, PAPER])
        raise InvalidInput(f"architecture must be one of {known}, got {config.architecture!r}")
    if config.side < 16 or config.side % 8:
        raise InvalidInput(f"the grid's side must be a multiple of 8 and at least 16, got {config.side}")
    return build(config), objective


def normalisation(config: NetworkConfig) -> str:
    """Return the tag of how a network's input is scaled."""
    return PAPER_NORMALISATION if config.architecture == PAPER else NORMALISATION


def start_from(path: Path) -> Start:
    """Return the start that a file of weights makes.

    Raises
    ------
    WeightsError
        It isn't one, or isn't of an architecture that is known here.
    """
    weights = load_weights(path, architectures=[*ARCHITECTURES, PAPER])
    if weights.config["architecture"] != PAPER:
        return network_start(path)
    network = PaperNetwork()
    fill(network, weights)
    return paper_start(network.eval())
