"""Pooling."""

from fractions import Fraction
from typing import ClassVar

from cnnspec import shapes
from cnnspec.ops.base import Op, ShapeFault, by_size, by_stride, need_map
from cnnspec.ops.convolution import too_large
from cnnspec.shapes import Shape
from cnnspec.signatures import CountSize, Padding, Size


def _pooled(name: str, x: Shape, kernel: Size, stride: Size, pad: Size, dilation: Size, ceil: bool) -> Shape:
    c, h, w = need_map(name, x)
    for axis in (0, 1):
        if 2 * pad[axis] > kernel[axis]:
            raise ShapeFault(
                "E0309",
                f"`{name}` can pad by at most half of its kernel, got {pad[axis]} for {kernel[axis]}",
                help=f"write `pad={kernel[axis] // 2}` or less",
                argument="pad",
            )
    height = shapes.window(h, kernel[0], stride[0], pad[0], dilation[0], ceil=ceil)
    width = shapes.window(w, kernel[1], stride[1], pad[1], dilation[1], ceil=ceil)
    if height < 1 or width < 1:
        raise too_large(name, kernel, pad, dilation, x)
    return c, height, width


class MaxPool(Op):
    """Maximum over a window, `[N, C, H, W] -> [N, C, H', W']`. Source: torch.nn.MaxPool2d."""

    name: ClassVar[str] = "maxpool"
    torch: ClassVar[str] = "torch.nn.MaxPool2d"
    kernel: CountSize
    stride: CountSize | None = None
    pad: Padding = (0, 0)
    dilation: CountSize = (1, 1)
    ceil: bool = False

    def infer(self, *inputs: Shape) -> Shape:
        return _pooled(
            self.name, inputs[0], self.kernel, self.stride or self.kernel, self.pad, self.dilation, self.ceil
        )

    def reduction(self, x: Shape, y: Shape) -> tuple[Fraction, Fraction]:
        return by_stride(self.stride or self.kernel)


class AvgPool(Op):
    """Mean over a window, `[N, C, H, W] -> [N, C, H', W']`; `count_pad` counts padding as zeros.

    Source: torch.nn.AvgPool2d.
    """

    name: ClassVar[str] = "avgpool"
    torch: ClassVar[str] = "torch.nn.AvgPool2d"
    kernel: CountSize
    stride: CountSize | None = None
    pad: Padding = (0, 0)
    ceil: bool = False
    count_pad: bool = True

    def infer(self, *inputs: Shape) -> Shape:
        return _pooled(self.name, inputs[0], self.kernel, self.stride or self.kernel, self.pad, (1, 1), self.ceil)

    def reduction(self, x: Shape, y: Shape) -> tuple[Fraction, Fraction]:
        return by_stride(self.stride or self.kernel)


class _Global(Op):
    """To one place, `[N, C, H, W] -> [N, C, 1, 1]`."""

    def infer(self, *inputs: Shape) -> Shape:
        return need_map(self.name, inputs[0])[0], 1, 1

    def reduction(self, x: Shape, y: Shape) -> tuple[Fraction, Fraction]:
        return by_size(x, y)


class GlobalAvgPool(_Global):
    """Mean over the map, `[N, C, H, W] -> [N, C, 1, 1]`. Source: torch.nn.AdaptiveAvgPool2d(1)."""

    name: ClassVar[str] = "global_avgpool"
    torch: ClassVar[str] = "torch.nn.AdaptiveAvgPool2d"


class GlobalMaxPool(_Global):
    """Maximum over the map, `[N, C, H, W] -> [N, C, 1, 1]`. Source: torch.nn.AdaptiveMaxPool2d(1)."""

    name: ClassVar[str] = "global_maxpool"
    torch: ClassVar[str] = "torch.nn.AdaptiveMaxPool2d"


class _Adaptive(Op):
    """To a given size."""

    size: CountSize

    def infer(self, *inputs: Shape) -> Shape:
        return need_map(self.name, inputs[0])[0], *self.size

    def reduction(self, x: Shape, y: Shape) -> tuple[Fraction, Fraction]:
        return by_size(x, y)


class AdaptiveAvgPool(_Adaptive):
    """Mean over as many windows as `size` has places. Source: torch.nn.AdaptiveAvgPool2d."""

    name: ClassVar[str] = "adaptive_avgpool"
    torch: ClassVar[str] = "torch.nn.AdaptiveAvgPool2d"


class AdaptiveMaxPool(_Adaptive):
    """Maximum over as many windows as `size` has places. Source: torch.nn.AdaptiveMaxPool2d."""

    name: ClassVar[str] = "adaptive_maxpool"
    torch: ClassVar[str] = "torch.nn.AdaptiveMaxPool2d"
