"""Batch normalisation over all devices of a run, so that a batch means the same on one device and on several."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn import functional as together


class BatchNormOverDevices(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the whole batch, on CPUs too.

    torch.nn.SyncBatchNorm needs a GPU. Devices may hold different numbers of images.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        own = input.new_tensor([input.numel() / input.shape[1]])
        # [C + 1]: the sums, and of how many numbers; the gradient of what is added up is added up, too.
        sums = together.all_reduce(torch.cat([input.sum((0, 2, 3)), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = input - mean[:, None, None]
        var = together.all_reduce(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)  # type: ignore[arg-type]
            with torch.no_grad():
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), share)
        normal = centred * (var + self.eps).rsqrt()[:, None, None]
        if self.weight is None:
            return normal
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch normalisation over all devices; weights and names stay as they are."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNormOverDevices
    return network
