"""Names of operators and arguments in other libraries, for the help of errors."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

FOREIGN_NAMES = {
    "conv2d": "conv",
    "Conv2d": "conv",
    "Conv2D": "conv",
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
    "Dense": "linear",
    "Linear": "linear",
    "max_pool": "maxpool",
    "MaxPool2d": "maxpool",
    "MaxPooling2D": "maxpool",
    "avg_pool": "avgpool",
    "AvgPool2d": "avgpool",
    "AveragePooling2D": "avgpool",
    "gap": "global_avgpool",
    "global_avg_pool": "global_avgpool",
    "avgpool_global": "global_avgpool",
    "Flatten": "flatten",
    "Dropout": "dropout",
    **dict.fromkeys(("deconv", "ConvTranspose2d", "Conv2DTranspose"), "conv_transpose"),
    **dict.fromkeys(("residual", "residual_block", "res_block", "basic_block", "BasicBlock"), "resnet_block"),
    **dict.fromkeys(("bottleneck_block", "Bottleneck"), "bottleneck"),
    **dict.fromkeys(("dense_block", "DenseLayer"), "dense_layer"),
    **dict.fromkeys(("se", "se_block", "SEBlock"), "squeeze_excite"),
    **dict.fromkeys(("mbconv", "MBConv"), "inverted_residual"),
    **dict.fromkeys(("inception", "InceptionBlock"), "inception_block"),
    **dict.fromkeys("dw dwconv dw_conv depthwise depthwise_conv DepthwiseConv2D".split(), "conv depthwise"),
    **dict.fromkeys(("cat", "concatenate", "Concatenate"), "concat"),
    "sum": "add",
}
"""Operators and standard blocks in other libraries, with the code to write here."""

_CHOICES = {
    **dict.fromkeys(("fmnist", "fashion"), "fashion_mnist"),
    "imagefolder": "folder",
    **dict.fromkeys("flip horizontalflip randomflip randomhorizontalflip fliplr".split(), "hflip"),
    **dict.fromkeys("verticalflip randomverticalflip flipud".split(), "vflip"),
    **dict.fromkeys("crop padcrop randompadcrop croppad".split(), "random_crop"),
    **dict.fromkeys("rotation randomrotation".split(), "rotate"),
    "jitter": "color_jitter",
    "trivialaugmentwide": "trivialaugment",
    "sgdm": "sgd",
    "steplr": "step",
    "multisteplr": "multistep",
    **dict.fromkeys("cosineannealing cosineannealinglr cosinelr".split(), "cosine"),
    "onecyclelr": "onecycle",
}
"""Choices of a recipe in other libraries, in lower case and without `_`, with their names here."""

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
"""Arguments in other libraries, with their possible names here."""


def foreign_choice(name: str, table: Collection[str]) -> str | None:
    """Return the choice of a recipe that other libraries, or other spellings, call by a name."""
    plain = re.sub(r"[\W_]", "", name.lower())
    own = next((own for own in table if own.replace("_", "") == plain), _CHOICES.get(plain, ""))
    return own if own in table else None


INFERRED = ("in_channels", "in_features", "num_features")
"""Arguments in other libraries that are inferred here."""

KERNEL_FIRST = ("conv", "conv_transpose")
"""Operators whose first argument is the kernel here, and the channels in other libraries."""

_ORDERS = {
    "Conv2d": " c kernel stride pad dilation groups bias",
    "ConvTranspose2d": " c kernel stride pad out_pad groups bias dilation",
    "Conv2D": "c kernel stride pad",
    "Conv2DTranspose": "c kernel stride pad",
    "Linear": " c bias",
    "MaxPool2d": "kernel stride pad",
    "AvgPool2d": "kernel stride pad",
    "Dropout": "p",
    "BatchNorm2d": " eps momentum",
}
"""Positional arguments of modules in other libraries, by their names here; an inferred one is empty."""
_KNOWN = {"", *INFERRED}
_VALUES = {"True": "true", "False": "false", "valid": "0"}


def translated(name: str, args: Sequence[str]) -> str | None:
    """Translate a call of a module of torch or Keras, or return None if an argument has no equivalent.

    Args:
        name: The module.
        args: Its arguments, keyword arguments with their names.
    """
    order = _ORDERS.get(name)
    if order is None:
        alone = [arg.strip() for arg in args] in ([], ["inplace=True"], ["True"])
        return FOREIGN_NAMES.get(name) if alone else None
    places, given = order.split(" "), dict[str, str]()
    for place, arg in zip(places, args, strict=False):
        key, _, value = arg.rpartition("=")
        key, value = key.strip() or place, value.strip().strip("\"'")
        if not re.fullmatch(r"[\w.]+", value):
            return None
        known = [key, *FOREIGN_ARGUMENTS.get(key, ())]
        given[next((own for own in known if own in places), key)] = _VALUES.get(value, value)
    if len(args) > len(places) or given.keys() - _KNOWN - {*places}:
        return None
    meant = FOREIGN_NAMES[name]
    if meant in KERNEL_FIRST and not given.keys() >= {"kernel", "c"}:
        return None
    if meant == "conv":  # their defaults differ here
        given = {"pad": "0", "bias": "true", **given}
        if given["bias"] == "false":
            del given["bias"]
    kernel, c = (given.pop(key, "") for key in ("kernel", "c"))
    kernel = f"{kernel}x{kernel}" if kernel.isdigit() else kernel
    rest = [k if value == "true" else f"{k}={value}" for k, value in given.items() if k not in _KNOWN]
    return " ".join(filter(None, (meant, kernel, c, *rest)))
