"""Normalisations; all keep the shape."""

from typing import ClassVar, Literal

from cnnspec import shapes
from cnnspec.inits import InitScheme
from cnnspec.ops.base import SameShape, ShapeFault, need_divisible, need_map
from cnnspec.shapes import Shape
from cnnspec.signatures import Count, NotNegative, Probability


def _affine(x: Shape) -> dict[str, Shape]:
    return {"weight": (x[0],), "bias": (x[0],)}


class BatchNorm(SameShape):
    """Batch normalisation over a map or flat features. Source: torch.nn.BatchNorm2d, BatchNorm1d."""

    name: ClassVar[str] = "bn"
    torch: ClassVar[str] = "torch.nn.BatchNorm2d"
    fixes_features: ClassVar[bool] = True
    eps: NotNegative = 1e-5
    momentum: Probability = 0.1
    affine: bool = True
    init: Literal["zero"] | InitScheme | None = None

    def weights(self, x: Shape) -> dict[str, Shape]:
        return _affine(x) if self.affine else {}


class GroupNorm(SameShape):
    """Normalisation over groups of channels; `groups` must divide C. Source: torch.nn.GroupNorm."""

    name: ClassVar[str] = "gn"
    torch: ClassVar[str] = "torch.nn.GroupNorm"
    groups: Count
    eps: NotNegative = 1e-5
    affine: bool = True
    init: Literal["zero"] | InitScheme | None = None

    def infer(self, *inputs: Shape) -> Shape:
        need_divisible(self.name, "channels", inputs[0][0], self.groups, "groups")
        if shapes.numel(inputs[0]) == self.groups:
            raise ShapeFault(
                "E0309",
                f"`gn` with {self.groups} groups of {shapes.text(inputs[0])} would normalise single numbers, which gives 0",
                help="use fewer groups, or put it in front of the pooling",
                argument="groups",
            )
        return inputs[0]

    def needs_places(self, x: Shape) -> bool:
        return self.groups == x[0]

    def weights(self, x: Shape) -> dict[str, Shape]:
        return _affine(x) if self.affine else {}


class LayerNorm(SameShape):
    """Normalisation of the channels at each place of a map, or of flat features.

    Source: torch.nn.LayerNorm; over the channels of maps as in Liu et al. 2022, arXiv 2201.03545.
    """

    name: ClassVar[str] = "ln"
    torch: ClassVar[str] = "torch.nn.LayerNorm"
    fixes_features: ClassVar[bool] = True
    eps: NotNegative = 1e-5
    affine: bool = True
    init: Literal["zero"] | InitScheme | None = None

    def weights(self, x: Shape) -> dict[str, Shape]:
        return _affine(x) if self.affine else {}


class InstanceNorm(SameShape):
    """Normalisation of each map of each image. Source: torch.nn.InstanceNorm2d."""

    name: ClassVar[str] = "in_norm"
    torch: ClassVar[str] = "torch.nn.InstanceNorm2d"
    eps: NotNegative = 1e-5
    momentum: Probability = 0.1
    affine: bool = False

    def infer(self, *inputs: Shape) -> Shape:
        shape = need_map(self.name, inputs[0])
        if shape[1:] == (1, 1):
            raise ShapeFault(
                "E0309", "`in_norm` of a 1x1 map is always zero", help="use `gn` or `bn`, or norm before the pool"
            )
        return shape

    def needs_places(self, x: Shape) -> bool:
        return True

    def weights(self, x: Shape) -> dict[str, Shape]:
        return _affine(x) if self.affine else {}


class LocalResponseNorm(SameShape):
    """Normalisation over `size` neighbouring channels.

    Source: torch.nn.LocalResponseNorm; Krizhevsky et al. 2012, section 3.3.
    """

    name: ClassVar[str] = "lrn"
    torch: ClassVar[str] = "torch.nn.LocalResponseNorm"
    size: Count
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0

    def infer(self, *inputs: Shape) -> Shape:
        return need_map(self.name, inputs[0])
