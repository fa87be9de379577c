"""Pooling."""

from collections.abc import Sequence
from typing import Literal

from cnnspec import shapes
from cnnspec.diagnostics.suggestions import Advice, SetArgument, one_of
from cnnspec.ops.base import FLOAT, INDEX, INPUT, Op, Saved, ShapeError, need_map
from cnnspec.ops.convolution import at_most, in_axis, kernel, padded, show_size, slide, wrong_axis
from cnnspec.schema import CountSize, Padding, Size
from cnnspec.shapes import KEEP, AxisRule, Fixed, SameWindow, Shape, Shift, Window


class _Pool(Op):
    """A sliding window without weights, `[N, C, H, W] -> [N, C, H', W']`."""

    kernel: CountSize
    stride: CountSize | None = None
    pad: Padding | Literal["tf_same"] = (0, 0)

    def infer(self, *inputs: Shape) -> Shape:
        c, h, w = need_map(self.name, inputs[0])
        if isinstance(self.pad, str):
            self._refuse_contradictions()
            return c, *self.resized(h, w)
        limits = [size // 2 for size in self.kernel]
        axis = wrong_axis(self.pad, limits)
        if axis is not None:
            got = f"got {self.pad[axis]}{in_axis(axis, self.pad, limits)} with kernel size {self.kernel[axis]}"
            raise ShapeError(
                "E0309",
                f"`pad` of `{self.name}` must be at most half of the kernel size, {got}",
                at_most("pad", self.pad, limits),
                argument="pad",
            )
        return c, *slide(self.name, (self.axis_rule(0), self.axis_rule(1)), h, w)

    def _refuse_contradictions(self) -> None:
        """Refuse arguments that contradict `pad=tf_same`; a dilated window could lie in the padding entirely."""
        for name in ("ceil", "count_pad", "dilation"):
            if name in self.changed():
                message = f"`{name}` and `pad=tf_same` cannot be used together"
                raise ShapeError("E0215", message, Advice(f"remove `{name}`"), argument=name)

    def axis_rule(self, axis: Literal[0, 1]) -> Window | SameWindow:
        raise NotImplementedError

    def _copied(self, inputs: Sequence[Shape], y: Shape) -> int:
        """Return the elements of the padded input."""
        return padded(inputs, y, (self.axis_rule(0), self.axis_rule(1)))

    def even(self) -> dict[str, Size | str]:
        kh, kw = self.kernel
        if kh % 2 == 0 or kw % 2 == 0 or isinstance(self.pad, str):
            return {}
        pad = kh // 2, kw // 2
        keeps: dict[str, Size | str] = {} if self.pad == pad else {"pad": pad}
        return keeps if self.stride else {"stride": (1, 1), **keeps}


class MaxPool(_Pool, name="maxpool", torch="torch.nn.MaxPool2d"):
    """Maximum over a window, `[N, C, H, W] -> [N, C, H', W']`. Source: torch.nn.MaxPool2d."""

    dilation: CountSize = (1, 1)
    ceil: bool = False

    def infer(self, *inputs: Shape) -> Shape:
        c, *sizes = super().infer(*inputs)
        _, h, w = inputs[0]
        if h < self.axis_rule(0).least or w < self.axis_rule(1).least:
            # torch returns -inf, and its gradient is written outside of the tensor
            size = min(self.dilation[0], h), min(self.dilation[1], w)
            raise ShapeError(
                "E0309",
                f"a window of `{self.name}` contains only padding, because the dilation exceeds the input size {h}x{w}",
                one_of("write `{0}`", SetArgument("dilation", show_size(size))),
                argument="dilation",
            )
        return c, *sizes

    def axis_rule(self, axis: Literal[0, 1]) -> Window | SameWindow:
        stride = self.stride or self.kernel
        if isinstance(self.pad, str):
            return SameWindow(self.kernel[axis], stride[axis], self.dilation[axis])
        return Window(self.kernel[axis], stride[axis], self.pad[axis], self.dilation[axis], self.ceil, filled=False)

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        copy, indices = self._copied(inputs, y), INDEX * shapes.numel(y)  # the position of each maximum
        return Saved(extra=indices + FLOAT * copy) if copy else Saved(inputs=(0,), extra=indices)

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        # torch computes the indices in evaluation, too
        return INDEX * shapes.numel(y) + FLOAT * self._copied(inputs, y)


class AvgPool(_Pool, name="avgpool", torch="torch.nn.AvgPool2d"):
    """Mean over a window, `[N, C, H, W] -> [N, C, H', W']`; `count_pad` counts padding as zeros.

    Source: torch.nn.AvgPool2d.
    """

    ceil: bool = False
    count_pad: bool = True

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        copy = self._copied(inputs, y)
        return Saved(extra=FLOAT * copy) if copy else INPUT

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return FLOAT * self._copied(inputs, y)

    def axis_rule(self, axis: Literal[0, 1]) -> Window | SameWindow:
        stride = self.stride or self.kernel
        if isinstance(self.pad, str):
            return SameWindow(self.kernel[axis], stride[axis])
        return Window(self.kernel[axis], stride[axis], self.pad[axis], ceil=self.ceil)


class BlurPool(Op, name="blurpool", torch="torch.nn.functional.conv2d", fresh=True):
    """Binomial filter of each channel, `[N, C, H, W] -> [N, C, H', W']`; `mode` fills the padding.

    The filter is a buffer `filt` of shape `[C, 1, *kernel]`, in the `state_dict` only if it is `persistent`.

    Source: Zhang 2019, arXiv 1904.11486, section 3.3; `BlurPool2d`.
    """

    kernel: CountSize = (3, 3)
    stride: CountSize = (2, 2)
    pad: Padding | Literal["same"] = "same"
    mode: Literal["constant", "reflect", "replicate", "circular"] = "reflect"
    persistent: bool = False

    def padding(self) -> Size:
        """Return the padding in height and width, with `same` resolved."""
        if not isinstance(self.pad, str):
            return self.pad
        if self.kernel[0] % 2 == 0 or self.kernel[1] % 2 == 0:
            kh, kw = self.kernel
            raise ShapeError(
                "E0305",
                f"`pad=same` (the default) requires an odd kernel size, got {kh}x{kw}",
                one_of("use a kernel size of {0.value}, or set `pad`", kernel(kh | 1, kw | 1)),
                argument="kernel",
            )
        return self.kernel[0] // 2, self.kernel[1] // 2

    def infer(self, *inputs: Shape) -> Shape:
        c, h, w = need_map(self.name, inputs[0])
        for size, pad in zip((h, w), self.padding(), strict=True):
            if size < Shift(pad, pad, self.mode).least:
                padding = "{}x{}".format(*self.padding())
                limit = "must be smaller than" if self.mode == "reflect" else "must not be larger than"
                raise ShapeError(
                    "E0309",
                    f"the padding {padding} of `blurpool mode={self.mode}` {limit} the map, which is {h}x{w}",
                    one_of("write `{0}`", SetArgument("mode", "replicate")),
                    argument="pad",
                )
        return c, *slide(self.name, (self.axis_rule(0), self.axis_rule(1)), h, w)

    def axis_rule(self, axis: Literal[0, 1]) -> Window:
        return Window(self.kernel[axis], self.stride[axis], self.padding()[axis], mode=self.mode)

    def macs(self, x: Shape, y: Shape) -> int:
        return shapes.numel(y) * self.kernel[0] * self.kernel[1]

    def buffers(self, x: Shape) -> int:
        return FLOAT * x[0] * self.kernel[0] * self.kernel[1]

    def _copied(self, x: Shape) -> int:
        """Return the elements of the padded input; 0 without padding."""
        height, width = self.padding()
        return shapes.numel((x[0], x[1] + 2 * height, x[2] + 2 * width)) if height or width else 0

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        copy = self._copied(inputs[0])
        kept = (0,) if not copy or self.mode in ("reflect", "replicate") else ()
        return Saved(inputs=kept, extra=FLOAT * copy)

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return FLOAT * self._copied(inputs[0])

    def workspace(self, inputs: Sequence[Shape], y: Shape) -> int:
        return self.kernel[0] * self.kernel[1] * shapes.numel(y[1:])  # one column per position, for one channel


class _Global(Op):
    """Global pooling, `[N, C, H, W] -> [N, C, 1, 1]`."""

    def infer(self, *inputs: Shape) -> Shape:
        return need_map(self.name, inputs[0])[0], 1, 1

    def axis_rule(self, axis: Literal[0, 1]) -> AxisRule:
        return Fixed(1)


class GlobalAvgPool(_Global, name="global_avgpool", torch="torch.nn.AdaptiveAvgPool2d"):
    """Mean over the map, `[N, C, H, W] -> [N, C, 1, 1]`. Source: torch.nn.AdaptiveAvgPool2d(1)."""


class GlobalMaxPool(_Global, name="global_maxpool", torch="torch.nn.AdaptiveMaxPool2d"):
    """Maximum over the map, `[N, C, H, W] -> [N, C, 1, 1]`. Source: torch.nn.AdaptiveMaxPool2d(1)."""

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(inputs=(0,), extra=INDEX * shapes.numel(y))  # the position of each maximum

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return INDEX * shapes.numel(y)  # torch computes the indices in evaluation, too


class _Adaptive(Op):
    """Pooling to a given size, `[N, C, H, W] -> [N, C, *size]`."""

    size: CountSize

    def infer(self, *inputs: Shape) -> Shape:
        return need_map(self.name, inputs[0])[0], *self.size

    def axis_rule(self, axis: Literal[0, 1]) -> AxisRule:
        return Fixed(self.size[axis])


class AdaptiveAvgPool(_Adaptive, name="adaptive_avgpool", torch="torch.nn.AdaptiveAvgPool2d"):
    """Mean over windows that divide the map evenly. Source: torch.nn.AdaptiveAvgPool2d."""

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved() if self.size == (1, 1) else INPUT


class AdaptiveMaxPool(_Adaptive, name="adaptive_maxpool", torch="torch.nn.AdaptiveMaxPool2d"):
    """Maximum over windows that divide the map evenly. Source: torch.nn.AdaptiveMaxPool2d."""

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(inputs=(0,), extra=INDEX * shapes.numel(y))  # the position of each maximum

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return INDEX * shapes.numel(y)  # torch computes the indices in evaluation, too


class Reduction(Op):
    """A reduction of one axis to size 1, `[N, C, H, W] -> [N, 1, H, W]`; flat features have channels alone."""

    over: Literal["c", "h", "w"]

    def infer(self, *inputs: Shape) -> Shape:
        if self.over == "c" and len(inputs[0]) == 1:
            return (1,)
        c, h, w = need_map(f"{self.name} over={self.over}", inputs[0])
        return (1, h, w) if self.over == "c" else (c, 1, w) if self.over == "h" else (c, h, 1)

    def axis_rule(self, axis: Literal[0, 1]) -> AxisRule:
        return Fixed(1) if self.over == "hw"[axis] else KEEP


class Mean(Reduction, name="mean", torch="torch.mean"):
    """Mean over the channels, the height or the width. Source: torch.mean, `keepdim=True`."""


class Max(Reduction, name="max", torch="torch.amax"):
    """Maximum over the channels, the height or the width. Equal maxima share the gradient.

    Source: torch.amax, `keepdim=True`.
    """

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(inputs=(0,), output=True)

    def backward_scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return (1 + FLOAT) * shapes.numel(inputs[0]) + (FLOAT + INDEX) * shapes.numel(y)  # where the maxima are
