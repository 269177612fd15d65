"""How the network is made: crystals to learn from, losses, the training loop, and weights to ship."""
