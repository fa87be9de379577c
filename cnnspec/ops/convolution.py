"""Convolutions and linear layers."""

from collections.abc import Sequence
from typing import Literal, cast

from cnnspec import shapes
from cnnspec.diagnostics.suggestions import Advice, InsertBefore, SetArgument, SetNumbers, Suggestion, one_of
from cnnspec.ops.base import FLOAT, INPUT, Op, Saved, ShapeError, need_divisible, need_map
from cnnspec.ops.inits import FlatInitName, InitName, InitScheme
from cnnspec.schema import Count, CountSize, Padding, Positive, Size
from cnnspec.shapes import AxisRule, SameWindow, Shape, Spread, Window
from cnnspec.shapes.symbolic import greatest


def kernel(height: int, width: int) -> SetArgument:
    """Suggest another kernel."""
    return SetArgument("kernel", f"{height}x{width}", "use a kernel size of {0.value}")


_SWAPPED = 8
"""Even kernels from this size on, with fewer output channels, are probably channels: `conv 64 3`."""


def _rounding(window: Window) -> int:
    """Return by how much a window may exceed the map; 0 if its stride may depend on the kernel."""
    return window.stride - 1 if window.ceil and window.stride != window.kernel else 0


def show_size(size: Size) -> str:
    """Render a size as `3` or `1x2`."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def wrong_axis(given: Size, limits: Sequence[int]) -> Literal[0, 1] | None:
    """Return the first axis in which a size exceeds its limit."""
    return 0 if given[0] > limits[0] else 1 if given[1] > limits[1] else None


def in_axis(axis: Literal[0, 1], given: Size, limits: Sequence[int]) -> str:
    """Name the axis of a wrong value, unless both axes have the same wrong value."""
    return "" if given[0] == given[1] and limits[0] == limits[1] else f" for the {('height', 'width')[axis]}"


def at_most(name: str, given: Size, limits: Sequence[int]) -> Suggestion:
    """Suggest the largest values of an argument, in each axis, that are at most the given ones."""
    most = min(given[0], limits[0]), min(given[1], limits[1])
    wording = "write `{0}` or less" if any(most) else f"remove `{name}`"
    return one_of(wording, SetArgument(name, show_size(most)))


def _flattened(*pooled: str) -> Suggestion:
    """Suggest operators before `linear` that make flat features."""
    codes = ("flatten", *pooled)
    wording = f"insert {' or '.join(f'`{{{i}}}`' for i in range(len(codes)))} before `linear`"
    return one_of(wording, *(InsertBefore(code, "insert `{0}` before `linear`") for code in codes))


def slide(name: str, windows: Sequence[Window | SameWindow], h: int, w: int) -> tuple[int, int]:
    """Return the output height and width of sliding windows on a map.

    Raises:
        ShapeError: A window is larger than the map.
    """
    height, width = (window(size) for window, size in zip(windows, (h, w), strict=True))
    fixed = [window for window in windows if isinstance(window, Window)]
    if (height >= 1 and width >= 1) or len(fixed) < len(windows):
        return height, width
    windows = fixed
    reach = [window.dilation * (window.kernel - 1) + 1 for window in windows]
    room = [size + 2 * window.pad for window, size in zip(windows, (h, w), strict=True)]
    dilated = "dilated " if any(window.dilation > 1 for window in windows) else ""
    padded = f" ({room[0]}x{room[1]} with padding)" if room != [h, w] else ""
    fitting = [
        window.kernel if length >= 1 else (size - 1 + _rounding(window)) // window.dilation + 1
        for window, length, size in zip(windows, (height, width), room, strict=True)
    ]
    raise ShapeError(
        "E0304",
        f"the {dilated}kernel size {reach[0]}x{reach[1]} of `{name}` is larger than the input size {h}x{w}{padded}",
        one_of("use a kernel size of at most {0.value}", kernel(*fitting)),
        argument="kernel",
    )


def padded(inputs: Sequence[Shape], y: Shape, rules: Sequence[AxisRule]) -> int:
    """Return the elements of a map padded for `tf_same`; 0 for kernels that never need padding.

    Sizes may be functions of the image size. The map is copied even if its size needs no padding.
    """
    sides, pads = list[int](), False
    for size, positions, rule in zip(inputs[0][1:], y[1:], rules, strict=True):
        if not isinstance(rule, SameWindow):
            return 0
        pads |= rule.reach > 1
        covered = positions * rule.stride + (rule.reach - rule.stride)
        sides.append(covered if rule.reach >= rule.stride else cast(int, greatest(size, covered)))
    return shapes.numel((inputs[0][0], *sides)) if pads else 0


class Conv(Op, name="conv", torch="torch.nn.Conv2d", counts_as_layer=True, keeps=INPUT, fresh=True):
    """Convolution, `[N, C, H, W] -> [N, c, H', W']`; see `shapes.Window` for H' and W'.

    `pad=same` pads by `dilation * (kernel - 1) / 2` on each side, `pad=tf_same` as `SAME` in TensorFlow; `depthwise` is
    `groups=in.c`, and then `c` is optional. With `standardize`, the weights of each output channel have mean 0 and
    variance 1; with `gain` they are multiplied by `gamma / sqrt(fan_in)` and by a learned factor.

    Source: torch.nn.Conv2d. `StandardizedConv2d`: Qiao et al. 2019, arXiv 1903.10520, section 3.2; `gain`: Brock et al.
    2021, arXiv 2101.08692, section 4.1.
    """

    kernel: CountSize
    c: Count | None = None
    stride: CountSize = (1, 1)
    pad: Padding | Literal["same", "tf_same"] = "same"
    dilation: CountSize = (1, 1)
    groups: Count = 1
    bias: bool = False
    depthwise: bool = False
    init: InitName | InitScheme | None = None
    standardize: bool = False
    gain: bool = False
    gain_init: float = 1.0
    gamma: float = 1.0
    eps: Positive = 1e-6

    def channels(self, x: Shape) -> int:
        """Return the output channels."""
        if self.c is None and not self.depthwise:
            raise ShapeError(
                "E0203",
                "`conv` is missing the required argument `c`",
                Advice("add the number of output channels, such as `c=16`"),
            )
        return self.c if self.c is not None else x[0]

    def group_count(self, x: Shape) -> int:
        """Return the groups, with `depthwise` resolved."""
        return x[0] if self.depthwise else self.groups

    def padding(self) -> Size:
        """Return the padding in height and width, with `same` resolved; 0 for `tf_same`, which depends on the size."""
        if not isinstance(self.pad, str):
            return self.pad
        if self.pad == "tf_same":
            return 0, 0
        kh, kw = self.kernel
        if kh % 2 == 0 or kw % 2 == 0:
            message = f"`pad=same` (the default) requires an odd kernel size, got {kh}x{kw}"
            suggestion, fallback = self._odd_kernel(), None
            if isinstance(suggestion, SetNumbers):
                given = f"`kernel` is {show_size(self.kernel)} and `c` is {self.c}"
                fallback = f"{given}: swap the values, or set `pad` explicitly"
            raise ShapeError("E0305", message, suggestion, argument="kernel", fallback=fallback)
        return shapes.same_padding(kh, self.dilation[0]), shapes.same_padding(kw, self.dilation[1])

    def _odd_kernel(self) -> Suggestion:
        """Suggest what to do about an even kernel with `pad=same`."""
        kh, kw = self.kernel
        if kh == kw >= _SWAPPED and self.c in range(1, kh, 2):
            settings = (("kernel", f"{self.c}x{self.c}"), ("c", kh))
            return SetNumbers(settings, "the kernel comes first: `conv {0}`")
        none, odd = SetArgument("pad", 0), kernel(kh | 1, kw | 1)
        if min(kh, kw) == 1:
            return one_of("use a kernel size of {0.value}, or set the padding explicitly: `{1}`", odd, none)
        wording = "use a kernel size of {0.value}, or set the padding explicitly: `{1}` or `{2}`"
        return one_of(wording, odd, SetArgument("pad", max(kh, kw) // 2), none)

    def infer(self, *inputs: Shape) -> Shape:
        c, h, w = need_map(self.name, inputs[0])
        if self.depthwise and self.groups != 1:
            message = "`depthwise` and `groups` cannot be used together"
            raise ShapeError("E0215", message, Advice("remove one of them"), argument="groups")
        out, groups = self.channels(inputs[0]), self.group_count(inputs[0])
        self._check_standardization(c // groups)
        if self.depthwise and out % c:
            raise ShapeError(
                "E0306",
                f"the output channels of a depthwise `conv` must be a multiple of its {c} input channels, got {out}",
                one_of(
                    f"write `{{0}}`, or remove `c` for {c} output channels",
                    SetArgument("c", max(1, round(out / c)) * c),
                ),
                argument="c",
            )
        need_divisible(self.name, "input channels", c, groups, "groups", out)
        need_divisible(self.name, "output channels", out, groups, "groups", c)
        return out, *slide(self.name, (self.axis_rule(0), self.axis_rule(1)), h, w)

    def _check_standardization(self, channels: int) -> None:
        """Refuse arguments without the one they refine, and weights that would all be 0."""
        for name, base in (("gain", "standardize"), ("gain_init", "gain"), ("gamma", "gain"), ("eps", "standardize")):
            if name in self.changed() and not getattr(self, base):
                message = f"`{name}` has no effect without `{base}`"
                suggestion = one_of(f"remove `{name}`, or write `{base}`", SetArgument(base, "true"))
                raise ShapeError("E0215", message, suggestion, argument=name)
        if self.standardize and channels * self.kernel[0] * self.kernel[1] == 1:
            raise ShapeError(
                "E0309",
                "`standardize` expects more than 1 weight per output channel, got 1: a single weight becomes 0",
                Advice("use a larger kernel or fewer groups, or remove `standardize`"),
                argument="standardize",
            )

    def axis_rule(self, axis: Literal[0, 1]) -> Window | SameWindow:
        if self.pad == "tf_same":
            return SameWindow(self.kernel[axis], self.stride[axis], self.dilation[axis])
        return Window(self.kernel[axis], self.stride[axis], self.padding()[axis], self.dilation[axis])

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        copy, fixed = padded(inputs, y, (self.axis_rule(0), self.axis_rule(1))), self.fixed_scratch(inputs)
        if fixed:
            fixed += 2 * FLOAT * y[0]  # mean and deviation of each output channel
        return Saved(extra=FLOAT * copy, fixed=fixed) if copy else Saved(inputs=(0,), fixed=fixed)

    def fixed_scratch(self, inputs: Sequence[Shape]) -> int:
        if not self.standardize:
            return 0
        weight = self.weights(inputs[0])["weight"]
        return FLOAT * (shapes.numel(weight) + self.gain * weight[0])  # the standardized weight, and its factors

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return FLOAT * padded(inputs, y, (self.axis_rule(0), self.axis_rule(1)))

    def even(self) -> dict[str, Size | str]:
        if self.pad == "tf_same":
            return {}
        odd = self.kernel[0] % 2 == self.kernel[1] % 2 == 1
        same = (shapes.same_padding(k, d) for k, d in zip(self.kernel, self.dilation, strict=True))
        return {"pad": "same"} if odd and self.pad not in ("same", tuple(same)) else {}

    def weights(self, x: Shape) -> dict[str, Shape]:
        out = self.channels(x)
        weight = {"weight": (out, x[0] // self.group_count(x), *self.kernel)}
        bias = {"bias": (out,)} if self.bias else {}
        return {**weight, **bias, **({"gain": (out, 1, 1, 1)} if self.gain else {})}

    def macs(self, x: Shape, y: Shape) -> int:
        return shapes.numel(y) * (x[0] // self.group_count(x)) * self.kernel[0] * self.kernel[1]

    def workspace(self, inputs: Sequence[Shape], y: Shape) -> int:
        # One column per output position (im2col), for one group at a time. torch avoids it for most sizes.
        return inputs[0][0] // self.group_count(inputs[0]) * self.kernel[0] * self.kernel[1] * shapes.numel(y[1:])


class ConvTranspose(
    Op, name="conv_transpose", torch="torch.nn.ConvTranspose2d", counts_as_layer=True, keeps=INPUT, fresh=True
):
    """Transposed convolution, `[N, C, H, W] -> [N, c, H', W']`.

    `H' = (H - 1) stride - 2 pad + dilation (kernel - 1) + out_pad + 1`. Source: torch.nn.ConvTranspose2d.
    """

    kernel: CountSize
    c: Count
    stride: CountSize = (1, 1)
    pad: Padding = (0, 0)
    out_pad: Padding = (0, 0)
    dilation: CountSize = (1, 1)
    groups: Count = 1
    bias: bool = True
    init: InitName | InitScheme | None = None

    def infer(self, *inputs: Shape) -> Shape:
        c, h, w = need_map(self.name, inputs[0])
        need_divisible(self.name, "input channels", c, self.groups, "groups", self.c)
        need_divisible(self.name, "output channels", self.c, self.groups, "groups", c)
        limits = [max(stride, dilation) - 1 for stride, dilation in zip(self.stride, self.dilation, strict=True)]
        axis = wrong_axis(self.out_pad, limits)
        if axis is not None:
            got = f"got {self.out_pad[axis]}{in_axis(axis, self.out_pad, limits)}"
            raise ShapeError(
                "E0309",
                "`out_pad` must be smaller than the stride or the dilation, "
                f"{got} (stride {self.stride[axis]}, dilation {self.dilation[axis]})",
                at_most("out_pad", self.out_pad, limits),
                argument="out_pad",
            )
        height, width = self.resized(h, w)
        if height < 1 or width < 1:
            raise ShapeError(
                "E0304",
                f"the output size {height}x{width} of `conv_transpose` is too small: the input size is {h}x{w}",
                at_most(
                    "pad",
                    self.pad,
                    [(size - 1 + 2 * pad) // 2 for size, pad in ((height, self.pad[0]), (width, self.pad[1]))],
                ),
                argument="pad",
            )
        return self.c, height, width

    def axis_rule(self, axis: Literal[0, 1]) -> AxisRule:
        return Spread(self.kernel[axis], self.stride[axis], self.pad[axis], self.dilation[axis], self.out_pad[axis])

    def even(self) -> dict[str, Size | str]:
        windows = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        over = [window - stride for window, stride in zip(windows, self.stride, strict=True)]
        pad = max(0, -(-over[0] // 2)), max(0, -(-over[1] // 2))
        out_pad = 2 * pad[0] - over[0], 2 * pad[1] - over[1]
        wanted = {"pad": pad, "out_pad": out_pad}
        return {name: size for name, size in wanted.items() if size != getattr(self, name)}

    def weights(self, x: Shape) -> dict[str, Shape]:
        weight = {"weight": (x[0], self.c // self.groups, *self.kernel)}
        return {**weight, "bias": (self.c,)} if self.bias else weight

    def macs(self, x: Shape, y: Shape) -> int:
        return shapes.numel(x) * (self.c // self.groups) * self.kernel[0] * self.kernel[1]

    def workspace(self, inputs: Sequence[Shape], y: Shape) -> int:
        # One column per input position.
        return self.c // self.groups * self.kernel[0] * self.kernel[1] * shapes.numel(inputs[0][1:])


class Linear(Op, name="linear", torch="torch.nn.Linear", counts_as_layer=True, keeps=INPUT, fresh=True):
    """Linear layer, `[N, F] -> [N, c]`; `pointwise` over the channels at each position, `[N, C, H, W] -> [N, c, H, W]`.

    Source: torch.nn.Linear; `pointwise` as in Liu et al. 2022, arXiv 2201.03545, section 2.
    """

    c: Count
    bias: bool = True
    pointwise: bool = False
    init: FlatInitName | InitScheme | None = None

    def infer(self, *inputs: Shape) -> Shape:
        if self.pointwise and len(inputs[0]) == 1:
            message = f"`linear {self.c} pointwise` expects a feature map [N, C, H, W], got {shapes.text(inputs[0])}"
            raise ShapeError("E0308", message, Advice("remove `pointwise`"), argument="pointwise")
        if not self.pointwise and len(inputs[0]) != 1:
            raise ShapeError(
                "E0307",
                f"`linear` expects flat features [N, F], got a feature map {shapes.text(inputs[0])}",
                _flattened() if inputs[0][1:] == (1, 1) else _flattened("global_avgpool | flatten"),
            )
        return self.c, *inputs[0][1:]

    def weights(self, x: Shape) -> dict[str, Shape]:
        return {"weight": (self.c, x[0]), "bias": (self.c,)} if self.bias else {"weight": (self.c, x[0])}

    def macs(self, x: Shape, y: Shape) -> int:
        return x[0] * shapes.numel(y)


class ChannelConv(Op, name="channel_conv", torch="torch.nn.Conv1d", keeps=INPUT, fresh=True):
    """Convolution along the channels, with one filter for all positions: `[N, C, H, W] -> [N, C, H, W]`.

    The ends are padded with zeros. The weight has the shape `[1, 1, kernel]`.

    Source: torch.nn.Conv1d over the channels as in Wang et al. 2019, arXiv 1910.03151, section 3.2.
    """

    kernel: Count
    bias: bool = False
    init: InitName | InitScheme | None = None

    def infer(self, *inputs: Shape) -> Shape:
        if self.kernel % 2 == 0:
            raise ShapeError(
                "E0305",
                f"`channel_conv` requires an odd kernel size, got {self.kernel}",
                one_of("write `{0}`", SetArgument("kernel", self.kernel + 1)),
                argument="kernel",
            )
        return inputs[0]

    def weights(self, x: Shape) -> dict[str, Shape]:
        weight = {"weight": (1, 1, self.kernel)}
        return {**weight, "bias": (1,)} if self.bias else weight

    def macs(self, x: Shape, y: Shape) -> int:
        return shapes.numel(y) * self.kernel

    def workspace(self, inputs: Sequence[Shape], y: Shape) -> int:
        return self.kernel * shapes.numel(y)  # one column per output
