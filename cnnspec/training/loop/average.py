"""Average the weights of a network over the steps of its training."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """An exponential moving average of the weights and buffers of a network.

    After n updates, the decay is min(decay, (1 + n) / (10 + n)), as in `tf.train.ExponentialMovingAverage`. Unlike
    `torch.optim.swa_utils.AveragedModel`, it counts the updates on the host, which then need not wait for a GPU.

    Args:
        network: The network. It is copied.
        decay: The final decay per step, in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = deepcopy(network), decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Include the weights after a step. The first update copies them."""
        pairs = list(zip(_tensors(self.module), _tensors(network), strict=True))
        if not self.updates:
            for average, current in pairs:
                average.copy_(current)
        else:
            step = get_ema_multi_avg_fn(min(self.decay, (1 + self.updates) / (10 + self.updates)))
            for floating in (True, False):
                group = [pair for pair in pairs if pair[0].is_floating_point() == floating]
                if group:
                    step([average for average, _ in group], [current for _, current in group], self.updates)
        self.updates += 1


def _tensors(network: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]
