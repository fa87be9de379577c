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


class Relu(Activation, name="relu", torch="torch.nn.ReLU", keeps=OUTPUT, overwrites=True):
    """max(x, 0). Source: torch.nn.ReLU."""


class Relu6(Activation, name="relu6", torch="torch.nn.ReLU6", keeps=INPUT):
    """min(max(x, 0), 6). Source: torch.nn.ReLU6."""


class Hardtanh(Activation, name="hardtanh", torch="torch.nn.Hardtanh", keeps=INPUT):
    """min(max(x, low), high). Source: torch.nn.Hardtanh."""

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


class LeakyRelu(Activation, name="leaky_relu", torch="torch.nn.LeakyReLU", keeps=INPUT):
    """x, or `negative_slope * x` below 0. Source: torch.nn.LeakyReLU."""

    negative_slope: float = 0.01


class PRelu(Activation, name="prelu", torch="torch.nn.PReLU", keeps=INPUT):
    """leaky_relu with learned slopes: one, or one per channel. Source: torch.nn.PReLU."""

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


class Elu(Activation, name="elu", torch="torch.nn.ELU", keeps=INPUT):
    """x, or `alpha * (exp(x) - 1)` below 0. Source: torch.nn.ELU."""

    alpha: float = 1.0


class Celu(Activation, name="celu", torch="torch.nn.CELU", keeps=INPUT):
    """x, or `alpha * (exp(x / alpha) - 1)` below 0. Source: torch.nn.CELU."""

    alpha: NotZero = 1.0


class Selu(Activation, name="selu", torch="torch.nn.SELU", keeps=INPUT):
    """Scaled elu. Source: torch.nn.SELU."""


class Gelu(Activation, name="gelu", torch="torch.nn.GELU", keeps=INPUT):
    """x times the cumulative normal distribution at x. Source: torch.nn.GELU."""

    approximate: Literal["none", "tanh"] = "none"


class Silu(Activation, name="silu", torch="torch.nn.SiLU", keeps=INPUT):
    """x times sigmoid(x). Source: torch.nn.SiLU."""


class Mish(Activation, name="mish", torch="torch.nn.Mish", keeps=INPUT):
    """x times tanh(softplus(x)). Source: torch.nn.Mish."""


class Softplus(Activation, name="softplus", torch="torch.nn.Softplus", keeps=INPUT):
    """`log(1 + exp(beta * x)) / beta`. Source: torch.nn.Softplus."""

    beta: NotZero = 1.0
    threshold: float = 20.0


class Tanh(Activation, name="tanh", torch="torch.nn.Tanh", keeps=OUTPUT):
    """Source: torch.nn.Tanh."""


class Sigmoid(Activation, name="sigmoid", torch="torch.nn.Sigmoid", keeps=OUTPUT):
    """Source: torch.nn.Sigmoid."""


class Hardswish(Activation, name="hardswish", torch="torch.nn.Hardswish", keeps=INPUT):
    """Source: torch.nn.Hardswish."""


class Hardsigmoid(Activation, name="hardsigmoid", torch="torch.nn.Hardsigmoid", keeps=INPUT):
    """Source: torch.nn.Hardsigmoid."""


class Identity(SameShape, name="identity", torch="torch.nn.Identity"):
    """Source: torch.nn.Identity."""

    def shares(self, training: bool) -> bool:
        return True


class Softmax(Activation, name="softmax", torch="torch.nn.Softmax", keeps=OUTPUT):
    """Softmax over the channels or features; with `parts`, over equal parts of them, each value with its peers.

    Part p of P holds the channels `p*C/P` to `(p + 1)*C/P - 1`. A channel and those at its place in the other parts
    sum to 1.

    Source: torch.nn.Softmax with `dim=1`; `parts` as in Li et al. 2019, arXiv 1903.06586, section 3.1.
    """

    parts: Several | None = None

    def infer(self, *inputs: Shape) -> Shape:
        if self.parts is not None:
            need_divisible(self.name, "input channels", inputs[0][0], self.parts, "parts", least=2)
        return inputs[0]


class Glu(Op, name="glu", torch="torch.nn.GLU", keeps=INPUT):
    """Gated linear unit, `[N, 2*C, H, W] -> [N, C, H, W]`: the first half of the channels times sigmoid of the second.

    Source: torch.nn.GLU with `dim=1`; Dauphin et al. 2017, arXiv 1612.08083, section 2.
    """

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


class ShakeShake(Op, name="shake_shake", torch="torch.lerp"):
    """Mix both halves of the channels, `[N, 2*C, H, W] -> [N, C, H, W]`: their mean in evaluation.

    In training, the first half has a random weight from 0 to 1 for each image, and the second half the rest. The
    backward pass uses another weight.

    Source: Gastaldi 2017, arXiv 1705.07485, section 1.1, with weights per image.
    """

    def infer(self, *inputs: Shape) -> Shape:
        return _half(self.name, inputs[0])

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(extra=FLOAT)

    def backward_scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return 2 * FLOAT * shapes.numel(y)  # the gradients of both halves


class ShakeDrop(SameShape, name="shake_drop", torch="torch.mul"):
    """Perturb whole images with probability `p` in training, and multiply by `1 - p` in evaluation.

    A perturbed image is multiplied by a random number from -1 to 1, and its gradient by another one from 0 to 1.

    Source: Yamada et al. 2018, arXiv 1802.02375, section 3, with numbers per image.
    """

    p: Probability

    def shares(self, training: bool) -> bool:
        return self.p == 0

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(extra=FLOAT if self.p else 0)


class Dropout(SameShape, name="dropout", torch="torch.nn.Dropout"):
    """Zero elements with probability `p` in training. Source: torch.nn.Dropout."""

    p: Probability = 0.5

    def shares(self, training: bool) -> bool:
        return not training or self.p == 0

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(extra=FLOAT * shapes.numel(y) if 0 < self.p < 1 else 0)


class Dropout2d(SameShape, name="dropout2d", torch="torch.nn.Dropout2d"):
    """Zero whole channels with probability `p` in training. Source: torch.nn.Dropout2d."""

    p: Probability = 0.5

    def infer(self, *inputs: Shape) -> Shape:
        return need_map(self.name, inputs[0])

    def shares(self, training: bool) -> bool:
        return not training or self.p == 0

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(extra=FLOAT * y[0] if 0 < self.p < 1 else 0)


class DropPath(SameShape, name="drop_path", torch="torchvision.ops.StochasticDepth"):
    """Zero whole images with probability `p` in training (stochastic depth); with `mode=batch`, all of a batch at once.

    Source: torchvision.ops.StochasticDepth; Huang et al. 2016, arXiv 1603.09382.
    """

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


class Scale(_Learned, name="scale", torch="torch.mul", keeps=INPUT):
    """Multiply by a learned factor: one per channel, or a single one.

    Source: LayerScale, Touvron et al. 2021, arXiv 2103.17239, section 2; ReZero, Bachlechner et al. 2020, arXiv
    2003.04887, section 3.
    """

    init: float = 1.0


class Shift(_Learned, name="shift", torch="torch.add", key="bias", fresh=True):
    """Add a learned value: one per channel, or a single one.

    Source: Fixup, Zhang et al. 2019, arXiv 1901.09321, section 3.
    """

    def backward_scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return 0


class Times(SameShape, name="times", torch="torch.mul"):
    """Multiply by a constant. Source: torch.mul."""

    factor: float
