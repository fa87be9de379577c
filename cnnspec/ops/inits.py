"""Initializations: `init conv kaiming_normal mode=fan_out`, `conv 3x3 16 init=dirac`.

Each class is named after its function in `torch.nn.init`. All take `bias`, the initial value of biases; without
it, biases are initialized as in torch.
"""

from typing import Literal

from cnnspec.diagnostics.suggestions import Advice, Suggestion, SwapArguments
from cnnspec.schema import Declared, NotNegative

Nonlinearity = Literal["linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"]


class InitScheme(Declared):
    """An initialization of weights."""

    def refused(self) -> tuple[str, Suggestion] | None:
        """Check the values against one another; return a message and a suggestion if they are implausible."""
        values = self.settings()
        low, high, std, mean = (values.get(name, 1.0) for name in ("low", "high", "std", "mean"))
        if low > high:
            return f"`low` must be at most `high`, got {low:g} and {high:g}", SwapArguments("low", "high")
        if std == 0:
            message = f"`{self.name}` with a standard deviation of 0 makes all weights equal"
            if mean > 0:
                wording = f"write `{self.name} {mean:g} 0`: the standard deviation comes first, then the mean"
                return message, SwapArguments("std", "mean", wording)
            return message, Advice("write a standard deviation above 0, such as 0.01")
        return None


class KaimingNormal(InitScheme, name="kaiming_normal"):
    """Normal with std `gain / sqrt(fan)`. Source: He et al. 2015, arXiv 1502.01852, section 2.2."""

    mode: Literal["fan_in", "fan_out"] = "fan_in"
    nonlinearity: Nonlinearity = "relu"
    slope: float = 0.0
    bias: float | None = None


class KaimingUniform(InitScheme, name="kaiming_uniform"):
    """Uniform with the standard deviation of `kaiming_normal`."""

    mode: Literal["fan_in", "fan_out"] = "fan_in"
    nonlinearity: Nonlinearity = "relu"
    slope: float = 0.0
    bias: float | None = None


class XavierNormal(InitScheme, name="xavier_normal"):
    """Normal with std `gain * sqrt(2 / (fan_in + fan_out))`. Source: Glorot and Bengio 2010, section 4.2.1."""

    gain: NotNegative = 1.0
    bias: float | None = None


class XavierUniform(InitScheme, name="xavier_uniform"):
    """Uniform with the standard deviation of `xavier_normal`."""

    gain: NotNegative = 1.0
    bias: float | None = None


class Normal(InitScheme, name="normal"):
    """Normal with a mean and a standard deviation."""

    std: NotNegative
    mean: float = 0.0
    bias: float | None = None


class TruncNormal(InitScheme, name="trunc_normal"):
    """Normal, truncated to `low`..`high`."""

    std: NotNegative
    mean: float = 0.0
    low: float = -2.0
    high: float = 2.0
    bias: float | None = None


class Uniform(InitScheme, name="uniform"):
    """Uniform between `low` and `high`."""

    low: float
    high: float
    bias: float | None = None


class Constant(InitScheme, name="constant"):
    """Every weight equal to `weight`."""

    weight: float
    bias: float | None = None


class Zero(InitScheme, name="zero"):
    """Weights and biases of 0; a residual block that ends with such a norm starts as the identity."""

    bias: float | None = 0.0


class Dirac(InitScheme, name="dirac"):
    """Convolutions that preserve their input channels, as many as there are output channels."""

    bias: float | None = None


class Orthogonal(InitScheme, name="orthogonal"):
    """A random (semi-)orthogonal matrix. Source: Saxe et al. 2013, arXiv 1312.6120."""

    gain: float = 1.0
    bias: float | None = None


INITS = InitScheme.kinds()

InitName = Literal[
    "kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform", "zero", "dirac", "orthogonal"
]
"""Initializations without required arguments, which can be named in a call."""

FlatInitName = Literal["kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform", "zero", "orthogonal"]
"""Those of them that apply to the matrix of a linear layer."""


def listed_inits(target: str) -> str:
    """List the initializations that apply to the weights of an operator, as they are written in a call."""
    written: list[str] = []
    for name in allowed_inits(target):
        required = ", ".join(INITS[name].required)
        written.append(f"`{name}({required})`" if required else f"`{name}`")
    return ", ".join(written)


def allowed_inits(target: str) -> tuple[str, ...]:
    """Return the initializations that apply to the weights of an operator."""
    if target in ("bn", "gn", "ln"):  # weights of one axis
        return ("constant", "zero", "normal", "trunc_normal", "uniform")
    return tuple(name for name in INITS if name != "dirac" or target != "linear")
