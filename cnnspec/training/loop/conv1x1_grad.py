"""The gradient of a narrow 1x1 convolution's weight as a product of matrices.

It is the product of two matrices, `[C_out, N*H*W]` and `[N*H*W, C_in]`. What torch calls for it on a CPU, oneDNN's
kernel, takes up to four times as long as a batched matrix product where there are few channels to write: for Inception
blocks, whose branches begin with such convolutions, that is a twentieth of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NARROW = 16
"""Output channels up to which the matrix product is faster."""


class _Pointwise(torch.autograd.Function):
    """A 1x1 convolution, `[N, C_in, H, W] -> [N, C_out, H, W]`."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        return torch.conv2d(images, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        images, weight = ctx.saved_tensors
        grad = grad_outputs[0].contiguous(memory_format=torch.channels_last)
        of_images = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_images = torch.ops.aten.convolution_backward(
                grad, images, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (True, False, False)
            )[0]
        if ctx.needs_input_grad[1]:
            rows, columns = (x.permute(0, 2, 3, 1).flatten(1, 2) for x in (grad, images))  # [N, H*W, C]
            of_weight = torch.bmm(rows.mT, columns).sum(0).view(weight.shape)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3))
        return of_images, of_weight, of_bias


def has_narrow(network: nn.Module) -> bool:
    """Whether there is anything in a network that `NarrowGradients` changes."""
    return any(
        isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and part.out_channels <= NARROW
        for part in network.modules()
    )


def _is_narrow(images: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> bool:
    stride, pad, _, groups = how
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
    """Within it narrow 1x1 convolutions in float32 and channels_last on a CPU have gradients by matrix products.

    They are torch's up to rounding, and as before on other devices, in other precisions and memory formats.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and len(args) == 7 and _is_narrow(*args):  # as nn.Conv2d calls it
            return _Pointwise.apply(*args[:3])
        return func(*args, **(kwargs or {}))
