"""Convolutions and linear layers."""

from typing import ClassVar, Literal

from cnnspec import shapes
from cnnspec.diagnostics.suggestions import Advice, InsertBefore, SetArgument, SetNumbers, Suggestion, one_of
from cnnspec.ops.base import INPUT, Op, Saved, ShapeError, need_divisible, need_map
from cnnspec.ops.inits import FlatInitName, InitName, InitScheme
from cnnspec.schema import Count, CountSize, Padding, Size
from cnnspec.shapes import AxisRule, Shape, Spread, Window


def kernel(height: int, width: int) -> SetArgument:
    """Suggest another kernel."""
    return SetArgument("kernel", f"{height}x{width}", "use a {0.value} kernel")


def slide(name: str, windows: tuple[Window, Window], h: int, w: int) -> tuple[int, int]:
    """Return the output height and width of sliding windows on a map.

    Raises:
        ShapeError: A window is larger than the map.
    """
    height, width = (window(size) for window, size in zip(windows, (h, w), strict=True))
    if height >= 1 and width >= 1:
        return height, width
    reach = [window.dilation * (window.kernel - 1) + 1 for window in windows]
    room = [size + 2 * window.pad for window, size in zip(windows, (h, w), strict=True)]
    dilated = "dilated " if any(window.dilation > 1 for window in windows) else ""
    padded = f" ({room[0]}x{room[1]} with padding)" if room != [h, w] else ""
    least = max(1, min(h, w))
    smaller = kernel(least, least)
    raise ShapeError(
        "E0304",
        f"the {dilated}kernel size {reach[0]}x{reach[1]} of `{name}` is larger than the input size {h}x{w}{padded}",
        one_of("use a kernel of at most {0.value}, increase the padding, or remove an earlier stride", smaller),
        argument="kernel",
    )


class Conv(Op):
    """Convolution, `[N, C, H, W] -> [N, c, H', W']`; see `shapes.Window` for H' and W'.

    `pad=same` pads by `dilation * (kernel - 1) / 2` on each side; `depthwise` is `groups=in.c`, and then
    `c` is optional.

    Source: torch.nn.Conv2d.
    """

    name: ClassVar[str] = "conv"
    torch: ClassVar[str] = "torch.nn.Conv2d"
    counts_as_layer: ClassVar[bool] = True
    keeps: ClassVar[Saved] = INPUT
    fresh: ClassVar[bool] = True
    kernel: CountSize
    c: Count | None = None
    stride: CountSize = (1, 1)
    pad: Padding | Literal["same"] = "same"
    dilation: CountSize = (1, 1)
    groups: Count = 1
    bias: bool = False
    depthwise: bool = False
    init: InitName | InitScheme | None = None

    def channels(self, x: Shape) -> int:
        """Return the output channels."""
        if self.c is None and not self.depthwise:
            raise ShapeError(
                "E0203",
                "`conv` is missing its argument `c`",
                Advice("add the number of output channels: `conv 3x3 c=16`"),
            )
        return self.c if self.c is not None else x[0]

    def group_count(self, x: Shape) -> int:
        """Return the groups, with `depthwise` resolved."""
        return x[0] if self.depthwise else self.groups

    def padding(self) -> Size:
        """Return the padding in height and width, with `same` resolved."""
        if not isinstance(self.pad, str):
            return self.pad
        kh, kw = self.kernel
        if kh % 2 == 0 or kw % 2 == 0:
            message = f"`pad=same` requires an odd kernel size, got {kh}x{kw}"
            raise ShapeError("E0305", message, self._odd_kernel(), argument="kernel")
        return shapes.same_padding(kh, self.dilation[0]), shapes.same_padding(kw, self.dilation[1])

    def _odd_kernel(self) -> Suggestion:
        """Suggest what to do about an even kernel with `pad=same`."""
        kh, kw = self.kernel
        if kh == kw and self.c in range(1, kh, 2):
            settings = (("kernel", f"{self.c}x{self.c}"), ("c", kh))
            return SetNumbers(settings, "the kernel comes first: `conv {0}`")
        none, odd = SetArgument("pad", 0), kernel(kh | 1, kw | 1)
        if min(kh, kw) == 1:
            return one_of("write `{0}`, which changes the size of the map, or use a {1.value} kernel", none, odd)
        wording = "write `{0}` or `{1}`, which change the size of the map, or use a {2.value} kernel"
        return one_of(wording, SetArgument("pad", max(kh, kw) // 2), none, odd)

    def infer(self, *inputs: Shape) -> Shape:
        c, h, w = need_map(self.name, inputs[0])
        if self.depthwise and self.groups != 1:
            message = "`depthwise` and `groups` cannot be used together"
            raise ShapeError("E0215", message, Advice("remove one of them"), argument="groups")
        out, groups = self.channels(inputs[0]), self.group_count(inputs[0])
        if self.depthwise and out % c:
            raise ShapeError(
                "E0306",
                f"the output channels of a depthwise `conv` must be a multiple of its {c} input channels, got {out}",
                one_of("write `{0}`, or remove `c`", SetArgument("c", max(1, round(out / c)) * c)),
                argument="c",
            )
        need_divisible(self.name, "input channels", c, groups, "groups", out)
        need_divisible(self.name, "output channels", out, groups, "groups", c)
        return out, *slide(self.name, (self.axis_rule(0), self.axis_rule(1)), h, w)

    def axis_rule(self, axis: Literal[0, 1]) -> Window:
        return Window(self.kernel[axis], self.stride[axis], self.padding()[axis], self.dilation[axis])

    def even(self) -> dict[str, Size | str]:
        odd = self.kernel[0] % 2 == self.kernel[1] % 2 == 1
        same = (shapes.same_padding(k, d) for k, d in zip(self.kernel, self.dilation, strict=True))
        return {"pad": "same"} if odd and self.pad not in ("same", tuple(same)) else {}

    def weights(self, x: Shape) -> dict[str, Shape]:
        out = self.channels(x)
        weight = {"weight": (out, x[0] // self.group_count(x), *self.kernel)}
        return {**weight, "bias": (out,)} if self.bias else weight

    def macs(self, x: Shape, y: Shape) -> int:
        return shapes.numel(y) * (x[0] // self.group_count(x)) * self.kernel[0] * self.kernel[1]


class ConvTranspose(Op):
    """Transposed convolution, `[N, C, H, W] -> [N, c, H', W']`.

    `H' = (H - 1) stride - 2 pad + dilation (kernel - 1) + out_pad + 1`. Source: torch.nn.ConvTranspose2d.
    """

    name: ClassVar[str] = "conv_transpose"
    torch: ClassVar[str] = "torch.nn.ConvTranspose2d"
    counts_as_layer: ClassVar[bool] = True
    keeps: ClassVar[Saved] = INPUT
    fresh: ClassVar[bool] = True
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
        for axis in (0, 1):
            if self.out_pad[axis] >= max(self.stride[axis], self.dilation[axis]):
                most = SetArgument("out_pad", max(self.stride[axis], self.dilation[axis]) - 1)
                raise ShapeError(
                    "E0309",
                    f"`out_pad` must be smaller than the stride or the dilation, got {self.out_pad[axis]}",
                    one_of("write `{0}` or less", most),
                    argument="out_pad",
                )
        height, width = self.resized(h, w)
        if height < 1 or width < 1:
            raise ShapeError(
                "E0304",
                f"the output size {height}x{width} of `conv_transpose` is too small: the input size is {h}x{w}",
                Advice("reduce `pad`"),
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


class Linear(Op):
    """Linear layer, `[N, F] -> [N, c]`. Source: torch.nn.Linear."""

    name: ClassVar[str] = "linear"
    torch: ClassVar[str] = "torch.nn.Linear"
    counts_as_layer: ClassVar[bool] = True
    keeps: ClassVar[Saved] = INPUT
    fresh: ClassVar[bool] = True
    c: Count
    bias: bool = True
    init: FlatInitName | InitScheme | None = None

    def infer(self, *inputs: Shape) -> Shape:
        if len(inputs[0]) != 1:
            raise ShapeError(
                "E0307",
                f"`linear` expects flat features [N, F], got a map {shapes.text(inputs[0])}",
                one_of("insert `{0}` before it, or `{1}`", *map(InsertBefore, ("flatten", "global_avgpool | flatten"))),
            )
        return (self.c,)

    def weights(self, x: Shape) -> dict[str, Shape]:
        return {"weight": (self.c, x[0]), "bias": (self.c,)} if self.bias else {"weight": (self.c, x[0])}

    def macs(self, x: Shape, y: Shape) -> int:
        return x[0] * self.c
