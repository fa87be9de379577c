"""The torch module of every operator, one row each, and the few modules that torch lacks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnspec.shapes import Shape


class Scope(nn.Module):
    """A level of the module tree. `scope[0]` and `scope["type"]` return children that no attribute can name."""

    __deepcopy__ = None  # `copy.deepcopy` looks it up in the instance, where a child may have this name

    def __getitem__(self, name: int | str) -> nn.Module | Tensor | None:
        child = self._modules.get(str(name))
        return self._parameters[str(name)] if child is None else child

    def __setattr__(self, name: str, value: Any) -> None:
        # torch sets `training` on every module, which would conflict with a child of that name.
        if name in self.__dict__ and not isinstance(value, nn.Module):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels at each position, `[N, C, H, W] -> [N, C, H, W]`.

    Source: Liu et al. 2022, arXiv 2201.03545, section 2.
    """

    def forward(self, input: Tensor) -> Tensor:
        x = input.permute(0, 2, 3, 1)  # [N, H, W, C]
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)  # [N, C, H, W]


class DropPath(nn.Module):
    """Stochastic depth: in training, zero an image with probability `p`, and divide it by `1 - p` otherwise.

    With `mode="batch"`, all images of a batch are zeroed or kept together.

    Source: torchvision.ops.StochasticDepth; Huang et al. 2016, arXiv 1603.09382.
    """

    def __init__(self, p: float, mode: str = "row") -> None:
        super().__init__()
        self.p = p
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        count = x.shape[0] if self.mode == "row" else 1
        # [N, 1, 1, 1]
        mask = x.new_empty((count,) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        if keep > 0:
            mask.div_(keep)
        return x * mask

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode}"


class ShakeShake(nn.Module):
    """Random mixture of both halves of the channels, `[N, 2*C, H, W] -> [N, C, H, W]`; their mean in evaluation.

    Source: Gastaldi 2017, arXiv 1705.07485, section 1.1, with weights per image.
    """

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        if not self.training:
            return (one + other).mul_(0.5)
        shape = (x.shape[0], 1, 1, 1)
        forward, backward = (x.new_empty(shape).uniform_() for _ in range(2))
        gap = one - other
        return other + gap * backward + gap.detach() * (forward - backward)


class ShakeDrop(nn.Module):
    """Random factors of images: from -1 to 1 with probability `p`, and from 0 to 1 in the backward pass.

    Source: Yamada et al. 2018, arXiv 1802.02375, section 3, with factors per image.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0:
            return x
        if not self.training:
            return x * (1 - self.p)
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = x.new_empty(shape).bernoulli_(1 - self.p)  # [N, 1, 1, 1]
        forward = torch.where(kept > 0, 1.0, x.new_empty(shape).uniform_(-1, 1))
        backward = torch.where(kept > 0, 1.0, x.new_empty(shape).uniform_(0, 1))
        return x * backward + x.detach() * (forward - backward)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Scale(nn.Module):
    """Multiplication by a learned tensor, `[N, C, H, W] -> [N, C, H, W]` or `[N, C] -> [N, C]`.

    Source: LayerScale, Touvron et al. 2021, arXiv 2103.17239, section 2.
    """

    def __init__(self, shape: tuple[int, ...], init: float) -> None:
        super().__init__()
        self.init = init
        self.weight = nn.Parameter(torch.full(shape, float(init)))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if weight.ndim == 1:
            weight = weight.view(-1, *(1,) * (x.ndim - 2))  # [C, 1, 1]
        return x * weight

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, init={self.init}"


class Shift(nn.Module):
    """Addition of a learned tensor, `[N, C, H, W] -> [N, C, H, W]` or `[N, C] -> [N, C]`.

    Source: Zhang et al. 2019, arXiv 1901.09321, section 3.
    """

    def __init__(self, shape: tuple[int, ...], init: float) -> None:
        super().__init__()
        self.init = init
        self.bias = nn.Parameter(torch.full(shape, float(init)))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias
        if bias.ndim == 1:
            bias = bias.view(-1, *(1,) * (x.ndim - 2))  # [C, 1, 1]
        return x + bias

    def extra_repr(self) -> str:
        return f"{tuple(self.bias.shape)}, init={self.init}"


class PointwiseLinear(nn.Linear):
    """Linear layer over the channels at each position, `[N, C, H, W] -> [N, c, H, W]`.

    Source: Liu et al. 2022, arXiv 2201.03545, section 2.
    """

    def forward(self, input: Tensor) -> Tensor:
        x = F.linear(input.permute(0, 2, 3, 1), self.weight, self.bias)  # [N, H, W, c]
        return x.permute(0, 3, 1, 2)  # [N, c, H, W]


class ChannelConv(nn.Conv1d):
    """Convolution along the channels, with one filter for all positions.

    Source: Wang et al. 2019, arXiv 1910.03151, section 3.2.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim == 2:
            return super().forward(input.unsqueeze(1)).squeeze(1)  # [N, C]
        x = input.flatten(2).unsqueeze(1)  # [N, 1, C, H*W]
        weight, padding = self.weight.unsqueeze(-1), (self.kernel_size[0] // 2, 0)
        return F.conv2d(x, weight, self.bias, 1, padding).view_as(input)


class PartSoftmax(nn.Softmax):
    """Softmax of each channel with the channels at its place in the other parts.

    Source: Li et al. 2019, arXiv 1903.06586, section 3.1.
    """

    def __init__(self, parts: int) -> None:
        super().__init__(dim=1)
        self.parts = parts

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input.unflatten(1, (self.parts, -1)))  # [N, P, C/P, H, W]
        return y.flatten(1, 2)  # [N, C, H, W]

    def extra_repr(self) -> str:
        return f"parts={self.parts}"


class Learned:
    """A parameter of a module, in an operator that has no module of its own."""

    def __new__(cls, shape: tuple[int, ...], init: float) -> nn.Parameter:
        return nn.Parameter(torch.full(shape, float(init)))


class Times(nn.Module):
    """Multiplication by a constant factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor}"


class SamePad:
    """Padding as in TensorFlow: the output of a window has `ceil(size / stride)` positions.

    Source: tf.nn.convolution with `padding="SAME"`.
    """

    @staticmethod
    def pad(x: Tensor, *window, value: float = 0.0) -> Tensor:
        # Whether to copy does not depend on the size, so that the saved memory is a formula of the size.
        if all(k == 1 for k in window[0]):
            return x
        sides: list[int] = []
        for size, k, s, d in zip(x.shape[-2:], *window, strict=True):
            # The last position starts at the last multiple of the stride.
            total = d * (k - 1) - (size - 1) % s
            total = total if d * (k - 1) + 1 >= s else max(total, 0)
            sides = [total // 2, total - total // 2, *sides]
        if not torch.compiler.is_exporting():
            return F.pad(x, sides, value=value)
        # `F.pad` would fix which amounts are 0.
        for axis, amounts in ((-1, sides[:2]), (-2, sides[2:])):
            size = list(x.shape)
            for index, amount in enumerate(amounts):
                size[axis] = amount
                edge = x.new_full(size, value)
                x = torch.cat([x, edge] if index else [edge, x], axis)
        return x


class SameConv2d(nn.Conv2d):
    """Convolution with the padding of TensorFlow."""

    def forward(self, input: Tensor) -> Tensor:
        x = SamePad.pad(input, self.kernel_size, self.stride, self.dilation)
        return self._conv_forward(x, self.weight, self.bias)


class StandardizedConv2d(nn.Conv2d):
    """Convolution whose weights have mean 0 and variance 1 for each output channel.

    With a gain, they are multiplied by `gamma / sqrt(fan_in)` and by a learned factor.

    Args:
        gain: The initial factor; None for no factor.
        same: Whether to pad as in TensorFlow.

    Source: Qiao et al. 2019, arXiv 1903.10520; Brock et al. 2021, arXiv 2101.08692.
    """

    def __init__(
        self,
        *args,
        eps: float = 1e-6,
        gain: float | None = None,
        gamma: float = 1.0,
        same: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.eps, self.same = eps, same
        self.factor = gamma * self.weight[0].numel() ** -0.5
        shape = (self.out_channels, 1, 1, 1)
        self.gain = None if gain is None else nn.Parameter(torch.full(shape, gain))

    def forward(self, input: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = None if self.gain is None else (self.gain * self.factor).view(-1)
        rows = F.batch_norm(rows, None, None, gain, None, True, 0.0, self.eps)
        if self.same:
            input = SamePad.pad(input, self.kernel_size, self.stride, self.dilation)
        return self._conv_forward(input, rows.view_as(self.weight), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"


class SameMaxPool2d(nn.MaxPool2d):
    """Maximum over a window with the padding of TensorFlow."""

    def forward(self, input: Tensor) -> Tensor:
        window = self.kernel_size, self.stride, self.dilation
        x = SamePad.pad(input, *window, value=float("-inf"))
        return F.max_pool2d(x, self.kernel_size, self.stride, 0, self.dilation)


class SameAvgPool2d(nn.AvgPool2d):
    """Mean over a window with the padding of TensorFlow, which counts as zeros."""

    def forward(self, input: Tensor) -> Tensor:
        x = SamePad.pad(input, self.kernel_size, self.stride, (1, 1))
        return F.avg_pool2d(x, self.kernel_size, self.stride)


class AxisMean(nn.Module):
    """Mean over one axis, which stays with size 1, `[N, C, H, W] -> [N, 1, H, W]`."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dim, keepdim=True)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class AxisMax(AxisMean):
    """Maximum over one axis, which stays with size 1, `[N, C, H, W] -> [N, 1, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(self.dim, keepdim=True)


class UpsampleLike(nn.Module):
    """Upsampling to the size of another map, `[N, C, h, w]` and `[N, D, H, W] -> [N, C, H, W]`.

    Source: torch.nn.functional.interpolate.
    """

    def __init__(self, mode: str = "nearest", align_corners: bool | None = None):
        super().__init__()
        self.mode, self.align_corners = mode, align_corners

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        size, corners = like.shape[-2:], self.align_corners
        return F.interpolate(x, size, mode=self.mode, align_corners=corners)

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}"


class BlurPool2d(nn.Module):
    """Binomial filter of each channel.

    Source: Zhang 2019, arXiv 1904.11486, section 3.3.
    """

    filt: Tensor

    def __init__(
        self,
        in_channels: int,
        kernel_size: tuple[int, int],
        *,
        stride: tuple[int, int],
        padding: tuple[int, int],
        mode: str = "reflect",
        persistent: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.mode = kernel_size, stride, mode
        height, width = padding
        self.sides = [width, width, height, height]
        filt = torch.empty(in_channels, 1, *kernel_size)
        self.register_buffer("filt", filt, persistent=persistent)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        rows: list[Tensor] = []
        for size in self.kernel_size:
            row = [1]
            for _ in range(size - 1):
                row = [a + b for a, b in zip([0, *row], [*row, 0], strict=True)]
            numbers = torch.tensor(row, dtype=torch.float32, device=self.filt.device)
            rows.append(numbers / 2 ** (size - 1))
        self.filt.copy_(rows[0][:, None] * rows[1])

    def forward(self, x: Tensor) -> Tensor:
        if any(self.sides):
            x = F.pad(x, self.sides, mode=self.mode)
        return F.conv2d(x, self.filt, stride=self.stride, groups=self.filt.shape[0])

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}"


class _UninitializedConv(nn.Conv2d):
    def reset_parameters(self) -> None:
        pass


class _UninitializedLinear(nn.Linear):
    def reset_parameters(self) -> None:
        pass


class _UninitializedPointwiseLinear(PointwiseLinear):
    def reset_parameters(self) -> None:
        pass


def _conv(op: Any, x: Shape, kind: type[nn.Conv2d] | None = None) -> nn.Module:
    groups = op.group_count(x)
    if op.standardize:
        standardization = {"eps": op.eps, "gain": op.gain_init if op.gain else None, "gamma": op.gamma}
        return StandardizedConv2d(
            *(x[0], op.channels(x), op.kernel, op.stride, op.padding(), op.dilation),
            **{"groups": groups, "bias": op.bias, "same": op.pad == "tf_same", **standardization},
        )
    kind = kind or (SameConv2d if op.pad == "tf_same" else nn.Conv2d)
    return kind(x[0], op.channels(x), op.kernel, op.stride, op.padding(), op.dilation, groups=groups, bias=op.bias)


def _linear(op: Any, x: Shape) -> nn.Module:
    return (PointwiseLinear if op.pointwise else nn.Linear)(x[0], op.c, bias=op.bias)


def _as(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    layer.__class__ = kind
    return layer


def _uninitialized_conv(op: Any, x: Shape) -> nn.Module:
    if op.standardize:
        return _conv(op, x)
    return _as(_conv(op, x, _UninitializedConv), SameConv2d if op.pad == "tf_same" else nn.Conv2d)


def _uninitialized_linear(op: Any, x: Shape) -> nn.Module:
    kind = _UninitializedPointwiseLinear if op.pointwise else _UninitializedLinear
    return _as(kind(x[0], op.c, bias=op.bias), PointwiseLinear if op.pointwise else nn.Linear)


def _conv_transpose(op: Any, x: Shape) -> nn.Module:
    return nn.ConvTranspose2d(
        x[0], op.c, op.kernel, op.stride, op.pad, op.out_pad, groups=op.groups, bias=op.bias, dilation=op.dilation
    )


def _batch_norm(op: Any, x: Shape) -> nn.Module:
    kind = nn.BatchNorm2d if len(x) == 3 else nn.BatchNorm1d
    return kind(x[0], eps=op.eps, momentum=op.momentum, affine=op.affine)


def _layer_norm(op: Any, x: Shape) -> nn.Module:
    kind = ChannelNorm if len(x) == 3 else nn.LayerNorm
    return kind(x[0], eps=op.eps, elementwise_affine=op.affine)


def _local_response_norm(op: Any, x: Shape) -> nn.Module:
    # The sum over a window is divided by its size. torch takes as long for a window as it has channels, real or not.
    window = op.window(x)
    return nn.LocalResponseNorm(window, op.alpha * window / op.size, op.beta, op.k)


def _upsample(op: Any, x: Shape) -> nn.Module:
    align = op.align_corners if op.mode != "nearest" else None
    if op.like is not None:
        return UpsampleLike(op.mode, align)
    return nn.Upsample(size=op.size, scale_factor=op.factor, mode=op.mode, align_corners=align)


def _max_pool(op: Any, x: Shape) -> nn.Module:
    if op.pad == "tf_same":
        return SameMaxPool2d(op.kernel, op.stride, 0, op.dilation)
    return nn.MaxPool2d(op.kernel, op.stride, op.pad, op.dilation, ceil_mode=op.ceil)


def _avg_pool(op: Any, x: Shape) -> nn.Module:
    if op.pad == "tf_same":
        return SameAvgPool2d(op.kernel, op.stride)
    return nn.AvgPool2d(op.kernel, op.stride, op.pad, op.ceil, op.count_pad)


PADS: dict[str, Callable[..., nn.Module]] = {
    "constant": nn.ConstantPad2d,
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "circular": nn.CircularPad2d,
}
"""The module of each mode of `pad`."""

ROWS: dict[str, Callable[[Any, Shape], nn.Module]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "channel_conv": lambda op, x: ChannelConv(1, 1, op.kernel, padding=op.kernel // 2, bias=op.bias),
    "bn": _batch_norm,
    "gn": lambda op, x: nn.GroupNorm(op.groups, x[0], eps=op.eps, affine=op.affine),
    "ln": _layer_norm,
    "in_norm": lambda op, x: nn.InstanceNorm2d(x[0], eps=op.eps, momentum=op.momentum, affine=op.affine),
    "lrn": _local_response_norm,
    "relu": lambda op, x: nn.ReLU(),
    "relu6": lambda op, x: nn.ReLU6(),
    "hardtanh": lambda op, x: nn.Hardtanh(op.low, op.high),
    "leaky_relu": lambda op, x: nn.LeakyReLU(op.negative_slope),
    "prelu": lambda op, x: nn.PReLU(op.num_parameters, op.init),
    "elu": lambda op, x: nn.ELU(op.alpha),
    "celu": lambda op, x: nn.CELU(op.alpha),
    "selu": lambda op, x: nn.SELU(),
    "gelu": lambda op, x: nn.GELU(op.approximate),
    "silu": lambda op, x: nn.SiLU(),
    "mish": lambda op, x: nn.Mish(),
    "softplus": lambda op, x: nn.Softplus(op.beta, op.threshold),
    "tanh": lambda op, x: nn.Tanh(),
    "sigmoid": lambda op, x: nn.Sigmoid(),
    "hardswish": lambda op, x: nn.Hardswish(),
    "hardsigmoid": lambda op, x: nn.Hardsigmoid(),
    "identity": lambda op, x: nn.Identity(),
    "softmax": lambda op, x: PartSoftmax(op.parts) if op.parts else nn.Softmax(dim=1),
    "dropout": lambda op, x: nn.Dropout(op.p),
    "dropout2d": lambda op, x: nn.Dropout2d(op.p),
    "glu": lambda op, x: nn.GLU(1),
    "shake_shake": lambda op, x: ShakeShake(),
    "shake_drop": lambda op, x: ShakeDrop(op.p),
    "drop_path": lambda op, x: DropPath(op.p, str(op.mode)),
    "scale": lambda op, x: Scale(op.weight(x), op.init),
    "shift": lambda op, x: Shift(op.weight(x), op.init),
    "times": lambda op, x: Times(op.factor),
    "maxpool": _max_pool,
    "avgpool": _avg_pool,
    "blurpool": lambda op, x: BlurPool2d(
        x[0], op.kernel, stride=op.stride, padding=op.padding(), mode=op.mode, persistent=op.persistent
    ),
    "global_avgpool": lambda op, x: nn.AdaptiveAvgPool2d(1),
    "global_maxpool": lambda op, x: nn.AdaptiveMaxPool2d(1),
    "adaptive_avgpool": lambda op, x: nn.AdaptiveAvgPool2d(op.size),
    "adaptive_maxpool": lambda op, x: nn.AdaptiveMaxPool2d(op.size),
    "mean": lambda op, x: AxisMean(1 + "chw".index(op.over)),
    "max": lambda op, x: AxisMax(1 + "chw".index(op.over)),
    "flatten": lambda op, x: nn.Flatten(),
    "upsample": _upsample,
    "pixel_shuffle": lambda op, x: nn.PixelShuffle(op.factor),
    "pixel_unshuffle": lambda op, x: nn.PixelUnshuffle(op.factor),
    "channel_shuffle": lambda op, x: nn.ChannelShuffle(op.groups),
    "pad": lambda op, x: PADS[op.mode](op.sides(), *([op.value] if op.mode == "constant" else [])),
}
"""The constructor of each operator that has a module, called with the operator and its input shape."""

UNINITIALIZED: dict[str, Callable[[Any, Shape], nn.Module]] = {
    "conv": _uninitialized_conv,
    "linear": _uninitialized_linear,
}
"""For operators with many weights: a constructor that leaves them uninitialized.

Initializing every weight twice, by torch's rule and by that of the spec, takes a third of the build time of a DenseNet.
"""

BARE: dict[str, str] = {"scale": "*", "shift": "+"}
"""The sign between the input and the weight of each operator whose weight can be a parameter of the module around."""

EXPRESSIONS: dict[str, Callable[[Any, list[str]], str]] = {
    "add": lambda op, inputs: " + ".join(inputs),
    "mul": lambda op, inputs: " * ".join(inputs),
    "concat": lambda op, inputs: f"torch.cat([{', '.join(inputs)}], 1)",
    "slice": lambda op, inputs: f"{inputs[0]}.narrow(1, {op.range[0]:d}, {op.range[1] - op.range[0]:d})",
}
"""The Python expression of each operator without a module, given the operator and the names of its inputs."""
