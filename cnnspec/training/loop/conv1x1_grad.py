"""Compute the weight gradient of a narrow 1x1 convolution as a matrix product.

The gradient is the product of two matrices, `[C_out, N*H*W]` and `[N*H*W, C_in]`. With few output channels, the oneDNN
kernel that torch calls on a CPU takes up to four times as long as a batched matrix product. The branches of Inception
blocks begin with such convolutions, which makes a difference of 5 % per step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NARROW = 16
"""The maximum number of output channels for which the matrix product is faster."""


class _Conv1x1(torch.autograd.Function):
    """A 1x1 convolution, `[N, C_in, H, W] -> [N, C_out, H, W]`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        return torch.conv2d(images, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        images, weight = ctx.saved_tensors
        grad = grad_outputs[0].contiguous(memory_format=torch.channels_last)
        grad_images = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_images = torch.ops.aten.convolution_backward(
                grad, images, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (True, False, False)
            )[0]
        if ctx.needs_input_grad[1]:
            rows, columns = (x.permute(0, 2, 3, 1).flatten(1, 2) for x in (grad, images))  # [N, H*W, C]
            grad_weight = torch.bmm(rows.mT, columns).sum(0).view(weight.shape)  # [C_out, C_in, 1, 1]
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))  # [C_out]
        return grad_images, grad_weight, grad_bias


def has_narrow(network: nn.Module) -> bool:
    """Return whether `NarrowGradients` affects a network."""
    return any(
        isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.out_channels <= NARROW
        for part in network.modules()
    )


def _is_narrow(images: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> bool:
    stride, pad, _, groups = settings
    return (
        weight.shape[2:] == (1, 1)
        and weight.shape[0] <= NARROW
        and groups == 1
        and stride == (1, 1)
        and pad == (0, 0)
        and images.device.type == "cpu"
        and images.dtype == torch.float32
        and images.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
    )


class NarrowGradients(TorchFunctionMode):
    """A mode in which narrow 1x1 convolutions compute their weight gradients as matrix products.

    It applies to float32 in channels_last on a CPU. The gradients equal those of torch up to rounding.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and len(args) == 7 and _is_narrow(*args):  # the call that nn.Conv2d makes
            return _Conv1x1.apply(*args[:3])
        return func(*args, **(kwargs or {}))
