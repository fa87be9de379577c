"""Normalizations; all keep the shape."""

from collections.abc import Sequence
from typing import Literal

from cnnspec import shapes
from cnnspec.diagnostics import counted
from cnnspec.diagnostics.suggestions import Advice
from cnnspec.ops.base import FLOAT, INDEX, SameShape, Saved, ShapeError, need_divisible, need_map
from cnnspec.ops.inits import InitScheme
from cnnspec.schema import Count, NotNegative, Positive, Probability
from cnnspec.shapes import ITSELF, Shape, Span


def _affine(x: Shape) -> dict[str, Shape]:
    return {"weight": (x[0],), "bias": (x[0],)}


class _OverMap(SameShape):
    """A normalization with the statistics of the whole map, in evaluation, too."""

    def span(self, axis: Literal[0, 1], x: int, y: int) -> Span | None:
        return None if x > 1 else ITSELF

    def reads(self, axis: Literal[0, 1], x: int, y: int) -> Sequence[Sequence[int]] | None:
        return [range(x)] * y


class BatchNorm(SameShape, name="bn", torch="torch.nn.BatchNorm2d", fixes_features=True, fresh=True):
    """Batch normalization of a map or of flat features. Source: torch.nn.BatchNorm2d, BatchNorm1d."""

    eps: Positive = 1e-5
    momentum: Probability = 0.1
    affine: bool = True
    init: Literal["zero"] | InitScheme | None = None

    def weights(self, x: Shape) -> dict[str, Shape]:
        return _affine(x) if self.affine else {}

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(inputs=(0,), fixed=2 * FLOAT * y[0])  # mean and deviation

    def buffers(self, x: Shape) -> int:
        return 2 * FLOAT * x[0] + INDEX  # running mean, running variance, number of batches


class GroupNorm(_OverMap, name="gn", torch="torch.nn.GroupNorm", fresh=True):
    """Normalization over groups of channels; `groups` must divide C. Source: torch.nn.GroupNorm."""

    groups: Count
    eps: NotNegative = 1e-5
    affine: bool = True
    init: Literal["zero"] | InitScheme | None = None

    def infer(self, *inputs: Shape) -> Shape:
        channels, values = inputs[0][0], shapes.numel(inputs[0])
        if values == 1 or values == channels == self.groups:
            grouped = f"{shapes.text(inputs[0])} in {counted(self.groups, 'group')}"
            fewer = ["use fewer groups"] if values > 1 else []
            elsewhere = ["move `gn` to a larger feature map" if shapes.is_map(inputs[0]) else "remove `gn`"]
            raise ShapeError(
                "E0309",
                f"`gn` expects more than 1 value per group, got {grouped}: single values normalize to 0",
                Advice(", or ".join(fewer + elsewhere)),
                argument="groups",
            )
        proper = values == channels  # as many groups would have a single value each
        need_divisible(self.name, "input channels", channels, self.groups, "groups", proper=proper)
        return inputs[0]

    def needs_places(self, x: Shape) -> bool:
        return self.groups == x[0]

    def weights(self, x: Shape) -> dict[str, Shape]:
        return _affine(x) if self.affine else {}

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(inputs=(0,), extra=2 * FLOAT * self.groups)  # mean and deviation

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return 2 * FLOAT * self.groups


class LayerNorm(SameShape, name="ln", torch="torch.nn.LayerNorm", fixes_features=True):
    """Normalization of the channels at each position of a map, or of flat features.

    Source: torch.nn.LayerNorm; over the channels of maps as in Liu et al. 2022, arXiv 2201.03545.
    """

    eps: NotNegative = 1e-5
    affine: bool = True
    init: Literal["zero"] | InitScheme | None = None

    def weights(self, x: Shape) -> dict[str, Shape]:
        return _affine(x) if self.affine else {}

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        return Saved(inputs=(0,), extra=2 * FLOAT * shapes.numel(y[1:]))  # mean and deviation

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return 2 * FLOAT * shapes.numel(y[1:])


class InstanceNorm(_OverMap, name="in_norm", torch="torch.nn.InstanceNorm2d", fresh=True):
    """Normalization of each channel of each image. Source: torch.nn.InstanceNorm2d."""

    eps: NotNegative = 1e-5
    momentum: Probability = 0.1
    affine: bool = False

    def infer(self, *inputs: Shape) -> Shape:
        shape = need_map(self.name, inputs[0])
        if shape[1:] == (1, 1):
            raise ShapeError(
                "E0309",
                f"`in_norm` expects more than 1 spatial element, got {shapes.text(shape)}: "
                "single values normalize to 0",
                Advice("use `bn`, or move `in_norm` to a larger feature map"),
            )
        return shape

    def needs_places(self, x: Shape) -> bool:
        return True

    def weights(self, x: Shape) -> dict[str, Shape]:
        return _affine(x) if self.affine else {}

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        # Mean and deviation, and the weights repeated for every image.
        return Saved(inputs=(0,), extra=(2 + self.affine) * FLOAT * y[0])

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return (2 + 2 * self.affine) * FLOAT * y[0]


class LocalResponseNorm(SameShape, name="lrn", torch="torch.nn.LocalResponseNorm"):
    """Normalization over `size` neighboring channels.

    Source: torch.nn.LocalResponseNorm; Krizhevsky et al. 2012, section 3.3.
    """

    size: Count
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0

    def window(self, x: Shape) -> int:
        """Return the channels of a window; wider ones would only add channels that are not there."""
        return min(self.size, 2 * x[0] - 1)

    def infer(self, *inputs: Shape) -> Shape:
        return need_map(self.name, inputs[0])

    def saved(self, inputs: Sequence[Shape], y: Shape, tracked: Sequence[bool]) -> Saved:
        # The padded squares, their mean, and its power.
        squares = (y[0] + self.window(y) - 1) * shapes.numel(y[1:])
        return Saved(inputs=(0,), extra=FLOAT * (squares + 2 * shapes.numel(y)))

    def scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return FLOAT * max(y[0] + self.window(y) - 1, 2 * y[0]) * shapes.numel(y[1:])

    def backward_scratch(self, inputs: Sequence[Shape], y: Shape) -> int:
        return 3 * FLOAT * shapes.numel(y)
