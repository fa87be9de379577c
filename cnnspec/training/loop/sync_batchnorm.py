"""Batch normalization over all devices of a run, so that the results do not depend on their number."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn import functional as dist_nn


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalization with the statistics of the whole batch, also on CPUs.

    torch.nn.SyncBatchNorm needs a GPU. Devices may have different numbers of images.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        own_count = input.new_tensor([input.numel() / input.shape[1]])
        # [C + 1]: the sums and the number of values. The backward pass of all_reduce also sums the gradients.
        sums = dist_nn.all_reduce(torch.cat([input.sum((0, 2, 3)), own_count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count  # [C]
        centered = input - mean[:, None, None]  # [N, C, H, W]
        var = dist_nn.all_reduce(centered.square().sum((0, 2, 3))) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)  # type: ignore[arg-type]
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), momentum)
        normalized = centered * (var + self.eps).rsqrt()[:, None, None]
        if self.weight is None:
            return normalized
        return normalized * self.weight[:, None, None] + self.bias[:, None, None]


def sync_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Convert the batch normalization of a network to work over all devices. Weights and names do not change."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CPUSyncBatchNorm
    return network
