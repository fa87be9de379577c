"""Batch normalization whose statistics are those of the whole batch over all devices, of a device, or of groups."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn import functional as dist_nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from cnnspec.recipe import Recipe


class CPUSyncBatchNorm(_BatchNorm):
    """Batch normalization with the statistics of the whole batch, also on CPUs.

    torch.nn.SyncBatchNorm needs a GPU. Devices may have different numbers of images.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept maps and flat features, as torch.nn.SyncBatchNorm does."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [-1, *[1] * (input.ndim - 2)]
        values = input.to(torch.promote_types(input.dtype, torch.float32))  # half precision cannot count values
        own_count = values.new_tensor([values.numel() / values.shape[1]])
        # [C + 1]: the sums and the number of values. The backward pass of all_reduce also sums the gradients.
        sums = dist_nn.all_reduce(torch.cat([values.sum(axes), own_count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count  # [C]
        centered = values - mean.view(shape)  # [N, C, H, W]
        var = dist_nn.all_reduce(centered.square().sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)  # type: ignore[arg-type]
            with torch.no_grad():
                unbiased = var * (count / (count - 1).clamp(min=1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        normalized = centered * (var + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(input.dtype)


@dataclass
class Groups:
    """The groups of ghost batch normalization.

    Attributes:
        images: The number of images of a group.
        share: The weight of a group in the running statistics of this device. The mean over the devices then weights
            all groups equally, also if devices have different numbers of them. None without other devices.
    """

    images: int
    share: float | None = None


class GhostBatchNorm(_BatchNorm):
    """Batch normalization of each group of consecutive images with its own statistics.

    The running statistics are updated once, with the mean over the groups. Sources: Hoffer et al. 2017, arXiv
    1705.08741, which updates them once per group; the mean as in cifar10-fast (Page 2019).
    """

    groups: Groups

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept maps and flat features."""

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if not self.training or mean is None or var is None:
            return super().forward(input)
        parts = input.split(self.groups.images)
        found = mean.new_zeros((len(parts), 2, len(mean)))  # the mean and variance of each group
        outputs = [
            F.batch_norm(part, own[0], own[1], self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for part, own in zip(parts, found, strict=True)
        ]
        share = self.groups.share or 1 / len(parts)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            total = found.sum(0) * share
            mean.lerp_(total[0], self.momentum)  # type: ignore[arg-type]
            var.lerp_(total[1], self.momentum)  # type: ignore[arg-type]
        return torch.cat(outputs)


def convert_batch_norm(network: nn.Module, recipe: Recipe, device: torch.device, devices: int) -> Groups | None:
    """Convert the batch normalization of a network to the statistics of a recipe. Weights and names do not change.

    Returns:
        The groups of ghost batch normalization, None without it.
    """
    groups = None if recipe.ghost is None else Groups(recipe.ghost)
    if groups is None and (devices == 1 or recipe.bn_statistics.name == "local"):
        return None
    if groups is None and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return None
    norms: list[Any] = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.__class__ = CPUSyncBatchNorm if groups is None else GhostBatchNorm
        norm.groups = groups
    return groups


def running_statistics(network: nn.Module, frozen: Collection[str]) -> list[Tensor]:
    """Return the running means and variances that training updates."""
    norms = (m for path, m in network.named_modules() if isinstance(m, _BatchNorm) and path not in frozen)
    return [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]


@torch.no_grad()
def average_over_devices(tensors: list[Tensor]) -> None:
    """Replace tensors of the same type by their means over all processes."""
    if not tensors:
        return
    total = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(total)
    total /= dist.get_world_size()
    for tensor, mean in zip(tensors, total.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
