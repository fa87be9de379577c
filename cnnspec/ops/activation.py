"""Activations and regularizations that keep the shape."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from cnnspec import shapes
from cnnspec.diagnostics.suggestions import Advice, InsertBefore, SetArgument, one_of
from cnnspec.ops.base import FLOAT, INPUT, OUTPUT, Op, SameShape, Saved, ShapeError, need_divisible, need_map
from cnnspec.schema import Count, NotZero, Probability, Several
from cnnspec.shapes import Shape


class Activation(SameShape):
    """A nonlinearity."""


class Relu(Activation):
    """max(x, 0). Source: torch.nn.ReLU."""

    name: ClassVar[str] = "relu"
    torch: ClassVar[str] = "torch.nn.ReLU"
    keeps: ClassVar[Saved] = OUTPUT
    overwrites: ClassVar[bool] = True


class Relu6(Activation):
    """min(max(x, 0), 6). Source: torch.nn.ReLU6."""

    name: ClassVar[str] = "relu6"
    torch: ClassVar[str] = "torch.nn.ReLU6"
    keeps: ClassVar[Saved] = INPUT


class Hardtanh(Activation):
    """min(max(x, low), high). Source: torch.nn.Hardtanh."""

    name: ClassVar[str] = "hardtanh"
    torch: ClassVar[str] = "torch.nn.Hardtanh"
    keeps: ClassVar[Saved] = INPUT
    low: float = -1.0
    high: float = 1.0

    def infer(self, *inputs: Shape) -> Shape:
        if self.low >= self.high:
            message = f"`low` must be less than `high`, got {self.low:g} and {self.high:g}"
            raise ShapeError(
                "E0215",
                message,
                Advice(
                    "write the smaller value first"
                    if self.low > self.high
                    else f"use a `high` greater than {self.low:g}"
                ),
                argument="low",
            )
        return inputs[0]


class LeakyRelu(Activation):
    """x, or `negative_slope * x` below 0. Source: torch.nn.LeakyReLU."""

    name: ClassVar[str] = "leaky_relu"
    torch: ClassVar[str] = "torch.nn.LeakyReLU"
    keeps: ClassVar[Saved] = INPUT
    negative_slope: float = 0.01


class PRelu(Activation):
    """leaky_relu with learned slopes: one, or one per channel. Source: torch.nn.PReLU."""

    name: ClassVar[str] = "prelu"
    torch: ClassVar[str] = "torch.nn.PReLU"
    keeps: ClassVar[Saved] = INPUT
    num_parameters: Count = 1
    init: float = 0.25

    def infer(self, *inputs: Shape) -> Shape:
        if self.num_parameters != 1 and self.num_parameters != inputs[0][0]:
            raise ShapeError(
                "E0306",
                f"`num_parameters` must be 1 or {inputs[0][0]} (the number of channels), got {self.num_parameters}",
                one_of("write `{0}`, or remove the argument", SetArgument("num_parameters", inputs[0][0])),
                argument="num_parameters",
            )
        return inputs[0]

    def weights(self, x: Shape) -> dict[str, Shape]:
        return {"weight": (self.num_parameters,)}

    def backward_scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return 2 * FLOAT * shapes.numel(y)  # input gradient, needed or not, and unreduced slope gradients


class Elu(Activation):
    """x, or `alpha * (exp(x) - 1)` below 0. Source: torch.nn.ELU."""

    name: ClassVar[str] = "elu"
    torch: ClassVar[str] = "torch.nn.ELU"
    keeps: ClassVar[Saved] = INPUT
    alpha: float = 1.0


class Celu(Activation):
    """x, or `alpha * (exp(x / alpha) - 1)` below 0. Source: torch.nn.CELU."""

    name: ClassVar[str] = "celu"
    torch: ClassVar[str] = "torch.nn.CELU"
    keeps: ClassVar[Saved] = INPUT
    alpha: NotZero = 1.0


class Selu(Activation):
    """Scaled elu. Source: torch.nn.SELU."""

    name: ClassVar[str] = "selu"
    torch: ClassVar[str] = "torch.nn.SELU"
    keeps: ClassVar[Saved] = INPUT


class Gelu(Activation):
    """x times the cumulative normal distribution at x. Source: torch.nn.GELU."""

    name: ClassVar[str] = "gelu"
    torch: ClassVar[str] = "torch.nn.GELU"
    keeps: ClassVar[Saved] = INPUT
    approximate: Literal["none", "tanh"] = "none"


class Silu(Activation):
    """x times sigmoid(x). Source: torch.nn.SiLU."""

    name: ClassVar[str] = "silu"
    torch: ClassVar[str] = "torch.nn.SiLU"
    keeps: ClassVar[Saved] = INPUT


class Mish(Activation):
    """x times tanh(softplus(x)). Source: torch.nn.Mish."""

    name: ClassVar[str] = "mish"
    torch: ClassVar[str] = "torch.nn.Mish"
    keeps: ClassVar[Saved] = INPUT


class Softplus(Activation):
    """`log(1 + exp(beta * x)) / beta`. Source: torch.nn.Softplus."""

    name: ClassVar[str] = "softplus"
    torch: ClassVar[str] = "torch.nn.Softplus"
    keeps: ClassVar[Saved] = INPUT
    beta: NotZero = 1.0
    threshold: float = 20.0


class Tanh(Activation):
    """Source: torch.nn.Tanh."""

    name: ClassVar[str] = "tanh"
    torch: ClassVar[str] = "torch.nn.Tanh"
    keeps: ClassVar[Saved] = OUTPUT


class Sigmoid(Activation):
    """Source: torch.nn.Sigmoid."""

    name: ClassVar[str] = "sigmoid"
    torch: ClassVar[str] = "torch.nn.Sigmoid"
    keeps: ClassVar[Saved] = OUTPUT


class Hardswish(Activation):
    """Source: torch.nn.Hardswish."""

    name: ClassVar[str] = "hardswish"
    torch: ClassVar[str] = "torch.nn.Hardswish"
    keeps: ClassVar[Saved] = INPUT


class Hardsigmoid(Activation):
    """Source: torch.nn.Hardsigmoid."""

    name: ClassVar[str] = "hardsigmoid"
    torch: ClassVar[str] = "torch.nn.Hardsigmoid"
    keeps: ClassVar[Saved] = INPUT


class Identity(SameShape):
    """Source: torch.nn.Identity."""

    name: ClassVar[str] = "identity"
    torch: ClassVar[str] = "torch.nn.Identity"

    def shares(self, training: bool) -> bool:
        return True


class Softmax(Activation):
    """Softmax over the channels or features; with `parts`, over equal parts of them, each value with its peers.

    Part p of P holds the channels `p*C/P` to `(p + 1)*C/P - 1`. A channel and those at its place in the other parts
    sum to 1.

    Source: torch.nn.Softmax with `dim=1`; `parts` as in Li et al. 2019, arXiv 1903.06586, section 3.1.
    """

    name: ClassVar[str] = "softmax"
    torch: ClassVar[str] = "torch.nn.Softmax"
    keeps: ClassVar[Saved] = OUTPUT
    parts: Several | None = None

    def infer(self, *inputs: Shape) -> Shape:
        if self.parts is not None:
            need_divisible(self.name, "input channels", inputs[0][0], self.parts, "parts", least=2)
        return inputs[0]


class Glu(Op):
    """Gated linear unit, `[N, 2*C, H, W] -> [N, C, H, W]`: the first half of the channels times sigmoid of the second.

    Source: torch.nn.GLU with `dim=1`; Dauphin et al. 2017, arXiv 1612.08083, section 2.
    """

    name: ClassVar[str] = "glu"
    torch: ClassVar[str] = "torch.nn.GLU"
    keeps: ClassVar[Saved] = INPUT

    def infer(self, *inputs: Shape) -> Shape:
        return _half(self.name, inputs[0])


def _half(name: str, x: Shape) -> Shape:
    """Return the shape of each half of the channels of a map."""
    c, h, w = need_map(name, x)
    if c % 2:
        raise ShapeError(
            "E0306",
            f"the number of input channels of `{name}` must be even, got {c:,}",
            InsertBefore(f"conv 1x1 {c + 1}", f"insert `{{0}}` before `{name}`"),
        )
    return c // 2, h, w


class ShakeShake(Op):
    """Mix both halves of the channels, `[N, 2*C, H, W] -> [N, C, H, W]`: their mean in evaluation.

    In training, the first half has a random weight from 0 to 1 for each image, and the second half the rest. The
    backward pass uses another weight.

    Source: Gastaldi 2017, arXiv 1705.07485, section 1.1, with weights per image.
    """

    name: ClassVar[str] = "shake_shake"
    torch: ClassVar[str] = "torch.lerp"

    def infer(self, *inputs: Shape) -> Shape:
        return _half(self.name, inputs[0])

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(extra=FLOAT)

    def backward_scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return 2 * FLOAT * shapes.numel(y)  # the gradients of both halves


class ShakeDrop(SameShape):
    """Perturb whole images with probability `p` in training, and multiply by `1 - p` in evaluation.

    A perturbed image is multiplied by a random number from -1 to 1, and its gradient by another one from 0 to 1.

    Source: Yamada et al. 2018, arXiv 1802.02375, section 3, with numbers per image.
    """

    name: ClassVar[str] = "shake_drop"
    torch: ClassVar[str] = "torch.mul"
    p: Probability

    def shares(self, training: bool) -> bool:
        return self.p == 0

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(extra=FLOAT if self.p else 0)


class Dropout(SameShape):
    """Zero elements with probability `p` in training. Source: torch.nn.Dropout."""

    name: ClassVar[str] = "dropout"
    torch: ClassVar[str] = "torch.nn.Dropout"
    p: Probability = 0.5

    def shares(self, training: bool) -> bool:
        return not training or self.p == 0

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(extra=FLOAT * shapes.numel(y) if 0 < self.p < 1 else 0)


class Dropout2d(SameShape):
    """Zero whole channels with probability `p` in training. Source: torch.nn.Dropout2d."""

    name: ClassVar[str] = "dropout2d"
    torch: ClassVar[str] = "torch.nn.Dropout2d"
    p: Probability = 0.5

    def infer(self, *inputs: Shape) -> Shape:
        return need_map(self.name, inputs[0])

    def shares(self, training: bool) -> bool:
        return not training or self.p == 0

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(extra=FLOAT * y[0] if 0 < self.p < 1 else 0)


class DropPath(SameShape):
    """Zero whole images with probability `p` in training (stochastic depth); with `mode=batch`, all of a batch at once.

    Source: torchvision.ops.StochasticDepth; Huang et al. 2016, arXiv 1603.09382.
    """

    name: ClassVar[str] = "drop_path"
    torch: ClassVar[str] = "torchvision.ops.StochasticDepth"
    p: Probability
    mode: Literal["row", "batch"] = "row"

    def shares(self, training: bool) -> bool:
        return not training or self.p == 0

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        if self.p == 0:
            return Saved()
        return Saved(extra=FLOAT) if self.mode == "row" else Saved(fixed=FLOAT)


class _Learned(SameShape):
    """A learned tensor that is combined with the input.

    With `bare`, the tensor is a parameter of the enclosing module: its key is the name of the call.
    """

    key: ClassVar[str] = "weight"
    init: float = 0.0
    shape: Literal["channel", "map", "batch", "one", "scalar"] = "channel"
    bare: bool = False

    @property
    def owns_module(self) -> bool:  # type: ignore[override]
        return not self.bare

    def infer(self, *inputs: Shape) -> Shape:
        if self.shape in ("map", "batch"):
            need_map(f"{self.name} shape={self.shape}", inputs[0])
        return inputs[0]

    def weight(self, x: Shape) -> Shape:
        """Return the shape of the tensor."""
        shapes = {"channel": (x[0],), "map": (x[0], 1, 1), "batch": (1, x[0], 1, 1), "one": (1,), "scalar": ()}
        return shapes[self.shape]

    def weights(self, x: Shape) -> dict[str, Shape]:
        return {"" if self.bare else self.key: self.weight(x)}

    def backward_scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return FLOAT * shapes.numel(y)  # unreduced gradients of the tensor


class Scale(_Learned):
    """Multiply by a learned factor: one per channel, or a single one.

    Source: LayerScale, Touvron et al. 2021, arXiv 2103.17239, section 2; ReZero, Bachlechner et al. 2020, arXiv
    2003.04887, section 3.
    """

    name: ClassVar[str] = "scale"
    torch: ClassVar[str] = "torch.mul"
    keeps: ClassVar[Saved] = INPUT
    init: float = 1.0


class Shift(_Learned):
    """Add a learned value: one per channel, or a single one.

    Source: Fixup, Zhang et al. 2019, arXiv 1901.09321, section 3.
    """

    name: ClassVar[str] = "shift"
    torch: ClassVar[str] = "torch.add"
    key: ClassVar[str] = "bias"
    fresh: ClassVar[bool] = True

    def backward_scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return 0


class Times(SameShape):
    """Multiply by a constant. Source: torch.mul."""

    name: ClassVar[str] = "times"
    torch: ClassVar[str] = "torch.mul"
    factor: float
