"""Which optimiser moves which weights."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

# Kernels that are thinner, the first and last layers' among them, have no directions to balance.
LEAST_CHANNELS = 8


class KernelMuon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) for convolutions: a kernel is orthogonalised as a matrix, output by all else.

    Steps have the size of AdamW's (Liu et al. 2025, Muon is Scalable for LLM Training), so that one learning
    rate serves both.

    Parameters
    ----------
    kernels
        Parameters of two or more dimensions.
    rate, weight_decay
        As AdamW's.
    """

    def __init__(self, kernels: Iterable[nn.Parameter], rate: float, weight_decay: float) -> None:
        self._kernels = list(kernels)
        matrices = [_matrix(kernel.detach()) for kernel in self._kernels]
        super().__init__(matrices, lr=rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the kernels, through the matrices that share their memory."""
        for kernel, matrix in zip(self._kernels, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if kernel.grad is None else _matrix(kernel.grad)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the kernels' gradients."""
        super().zero_grad(set_to_none)
        for kernel in self._kernels:
            kernel.grad = None


def make_optimisers(
    model: nn.Module, name: Literal["muon", "adamw"], rate: float, weight_decay: float
) -> list[Optimizer]:
    """Return the optimisers that together move all of a model's weights; only kernels decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    wide = [p for p in parameters if name == "muon" and is_wide(p)]
    chosen = {id(p) for p in wide}
    kernels = [p for p in parameters if p.ndim > 1 and id(p) not in chosen]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimisers: list[Optimizer] = [KernelMuon(wide, rate, weight_decay)] if wide else []
    filled = [group for group in groups if group["params"]]
    return optimisers + ([AdamW(filled, lr=rate)] if filled else [])


def is_wide(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix, or a kernel seen as one, with enough rows and columns for Muon."""
    return parameter.ndim > 1 and min(len(parameter), parameter[0].numel()) >= LEAST_CHANNELS


def set_rate(optimisers: Sequence[Optimizer], rate: float) -> None:
    """Give every group the same learning rate."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate


def _matrix(kernel: Tensor) -> Tensor:
    """Return (outputs, all else), sharing the memory of a kernel that is contiguous."""
    return kernel.view(len(kernel), -1)
