"""The closed set of operators: the settings, shape rule, weights and counts of one in one class."""

from collections.abc import Sequence

from cnnspec.ops import activation, convolution, join, layout, norm, pool
from cnnspec.ops.base import Op, SameShape, ShapeFault
from cnnspec.ops.join import Add, Concat, Mul

__all__ = [
    "FOREIGN_ARGUMENTS",
    "FOREIGN_NAMES",
    "INFERRED",
    "JOINS",
    "OPS",
    "Add",
    "Concat",
    "Mul",
    "Op",
    "ShapeFault",
    "stacked",
]

_MODULES = (convolution, norm, activation, pool, layout, join)

_ALL: list[type[Op]] = [
    kind
    for module in _MODULES
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Op) and kind.__module__ == module.__name__ and kind.name
]

OPS: dict[str, type[Op]] = {kind.name: kind for kind in _ALL if kind.callable}
"""Every operator that a spec can call, by its name."""

JOINS: dict[str, type[Op]] = {kind.name: kind for kind in _ALL if not kind.callable}
"""The joins, by the word in front of their braces."""


def stacked(branches: Sequence[Sequence[str | None]]) -> bool:
    """Whether branches seem to be meant one behind the other: a norm or an activation alone behind one ending in a layer.

    Args:
        branches: What each calls, in its order; none for an element that is no call.
    """
    ends = [OPS.get(branch[-1] or "") for branch in branches[:-1]]
    alone = [OPS.get(branch[0] or "") if len(branch) == 1 else None for branch in branches[1:]]
    return any(
        end is not None and end.counts_as_layer and kind is not None and issubclass(kind, SameShape)
        for end, kind in zip(ends, alone, strict=True)
    )


FOREIGN_NAMES = {
    "conv2d": "conv",
    "Conv2d": "conv",
    "convolution": "conv",
    "batchnorm": "bn",
    "batch_norm": "bn",
    "BatchNorm2d": "bn",
    "layernorm": "ln",
    "layer_norm": "ln",
    "LayerNorm": "ln",
    "groupnorm": "gn",
    "group_norm": "gn",
    "GroupNorm": "gn",
    "instance_norm": "in_norm",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "swish": "silu",
    "fc": "linear",
    "dense": "linear",
    "Linear": "linear",
    "max_pool": "maxpool",
    "MaxPool2d": "maxpool",
    "avg_pool": "avgpool",
    "AvgPool2d": "avgpool",
    "gap": "global_avgpool",
    "global_avg_pool": "global_avgpool",
    "avgpool_global": "global_avgpool",
    "Flatten": "flatten",
    "Dropout": "dropout",
    "deconv": "conv_transpose",
    **dict.fromkeys(("residual", "residual_block", "res_block", "basic_block", "BasicBlock"), "resnet_block"),
    **dict.fromkeys(("bottleneck_block", "Bottleneck"), "bottleneck"),
    **dict.fromkeys(("dense_block", "DenseLayer"), "dense_layer"),
    **dict.fromkeys(("se", "se_block", "SEBlock"), "squeeze_excite"),
    **dict.fromkeys(("mbconv", "MBConv"), "inverted_residual"),
    **dict.fromkeys(("inception", "InceptionBlock"), "inception_block"),
    "cat": "concat { ... }",
    "sum": "add { ... }",
}
"""What other libraries call an operator or a standard block, for the help of an error."""

_ARGUMENTS = {
    "c": "out_channels out_features num_filters out filters channels units width dim",
    "kernel": "kernel_size kernel_shape filter_size ksize size k",
    "stride": "strides s",
    "pad": "padding p",
    "groups": "num_groups",
    "subsample": "stride strides s downsample",
}
FOREIGN_ARGUMENTS = {
    other: [name for name, others in _ARGUMENTS.items() if other in others.split()]
    for other in " ".join(_ARGUMENTS.values()).split()
}
"""What other libraries call an argument, with what it may be called here."""

INFERRED = ("in_channels", "in_features", "num_features")
"""What other libraries want to be told, and is known here."""
