"""Names of operators and arguments in other libraries, for the help of errors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

FOREIGN_NAMES = {
    "conv2d": "conv",
    "Conv2d": "conv",
    "Conv2D": "conv",
    "convolution": "conv",
    "batchnorm": "bn",
    "batch_norm": "bn",
    "BatchNorm2d": "bn",
    "BatchNorm1d": "bn",
    "batch_norm1d": "bn",
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
    "MaxPool2D": "maxpool",
    "AvgPool2D": "avgpool",
    "BatchNormalization": "bn",
    "LayerNormalization": "ln",
    **dict.fromkeys(("UpSampling2D", "Upsample"), "upsample"),
    "AdaptiveAvgPool2d": "adaptive_avgpool",
    "LeakyReLU": "leaky_relu",
    "PixelShuffle": "pixel_shuffle",
    "Dropout2d": "dropout2d",
    **dict.fromkeys(("h_swish", "hswish"), "hardswish"),
    **dict.fromkeys(("h_sigmoid", "hsigmoid"), "hardsigmoid"),
    **dict.fromkeys(("ZeroPadding2D", "ZeroPad2d", "ConstantPad2d"), "pad"),
    **{
        f"{torch}Pad2d": f"pad mode={mode}"
        for torch, mode in (("Reflection", "reflect"), ("Replication", "replicate"), ("Circular", "circular"))
    },
    "SpatialDropout2D": "dropout2d",
    "GlobalAveragePooling2D": "global_avgpool | flatten",
    "GlobalMaxPooling2D": "global_maxpool | flatten",
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
    **dict.fromkeys(("se", "se_block", "SEBlock", "squeeze_excitation", "SqueezeExcitation"), "squeeze_excite"),
    **dict.fromkeys(("mbconv", "MBConv"), "inverted_residual"),
    **dict.fromkeys(("inception", "InceptionBlock"), "inception_block"),
    **dict.fromkeys("dw dwconv dw_conv depthwise depthwise_conv DepthwiseConv2D".split(), "conv depthwise"),
    **dict.fromkeys(("cat", "concatenate", "Concatenate"), "concat"),
    **dict.fromkeys(("sum", "plus", "eltwise", "Add"), "add"),
    **dict.fromkeys(("multiply", "Multiply", "prod"), "mul"),
    "channel_mean": "mean over=c",
    "channel_max": "max over=c",
    "amax": "max",
}
"""Operators and standard blocks in other libraries, with the code to write here."""

_ATTENTION = re.compile(
    r"^(?!.*(channel|spatial|coord)).*attention|attn|transformer|(^|_)(mha|mhsa|vit|swin)(_|$)", re.IGNORECASE
)
_RECURRENT = re.compile(r"^(lstm|gru|rnn)(_?cell)?$|recurrent", re.IGNORECASE)
_DETECTION = re.compile(r"^(roi_?(align|pool)|(batched_)?nms|anchors?|ps_roi_\w+|detect)$", re.IGNORECASE)
_LOSS = re.compile(r"loss$|^(binary_)?cross_?entropy", re.IGNORECASE)
_STATEMENTS = {
    "return": "remove it: the output of a network or block is that of its last statement",
    "pass": "remove it",
    "argmax": "remove it: `cnnspec predict` names the most probable class",
    "print": "remove it: `cnnspec summary` prints the layers of a network",
    "import": "remove it: operators and standard blocks need no import, and `use` imports other blocks",
}
"""Statements of Python that read like calls."""
DEFINITIONS = ("const", "var", "int", "float", "val", "set", "define")
"""Words that other languages write before a definition."""
FOREIGN_CLASSES = ("num_classes", "n_classes", "nclasses", "nb_classes", "number_of_classes")
"""Names of the number of classes in other languages."""
_OTHER_AXES = re.compile(r"[a-z]_?[13]d(_\w+)?$", re.IGNORECASE)
_RESHAPES = frozenset(
    "reshape view permute transpose unflatten squeeze unsqueeze rearrange matmul bmm einsum fold unfold".split()
)
_ELSEWHERE = frozenset(
    """abs acos adaptivelogsoftmax alphadropout asin atan bilinear channelmin cos
    cosinesimilarity crelu cumsum deformconv divide div dropblock einsum embedding embeddingbag exp
    featurealphadropout fractionalmaxpool getitem globalresponsenorm grn gumbelsoftmax hardshrink
    invert involution l1norm l2norm lambda log logsigmoid logsoftmax lppool maskedconv maxout maxunpool
    median min minpool globalminpool adaptiveminpool norm normalize onehot pairwisedistance pow
    quantstub repeatinterleave reverse rms rmsnorm roll rrelu sin softmin softshrink softsign
    spectralnorm sqrt stochasticpool subtract sub syncbatchnorm tan tanhshrink threshold tile topk
    unfold unpool weightnorm""".split()
)
"""Operators of other libraries without an equivalent here, in lower case and without `_` and `2d`."""

_WITH_OTHER_ARGUMENTS = {
    **{
        name: f"mul {{ slice 0..in.c//2; slice in.c//2..in.c | {gate} }}"
        for name, gate in (("geglu", "gelu"), ("swiglu", "silu"), ("reglu", "relu"))
    },
    "spacetodepth": "pixel_unshuffle 2 | channel_shuffle in.c",
    "depthtospace": "channel_shuffle 4 | pixel_shuffle 2",
    "separableconv": "conv 3x3 depthwise | conv 1x1 16",
    **dict.fromkeys(("clamp", "clip"), "hardtanh low=0 high=1"),
    **dict.fromkeys(("split", "chunk"), "slice 0..8"),
    **dict.fromkeys(("interpolate", "upsamplingnearest"), "upsample 2"),
    "upsamplingbilinear": "upsample 2 mode=bilinear align_corners",
}
"""Operators of other libraries whose arguments have no equivalent, written as above, with an example of the code."""


def _plain(name: str) -> str:
    """Return a name in lower case, without `_`, the prefix `lazy` and the suffix `2d`."""
    return re.sub(r"^lazy|2d$", "", name.lower().replace("_", ""))


_OF_MAPS = {_plain(name): code for name, code in FOREIGN_NAMES.items() if name.endswith(("2d", "2D"))}


def foreign_operator(name: str, own: Iterable[str]) -> str | None:
    """Return the code for an operator of another library.

    Args:
        name: Its name there, or a name in other letters: `LeakyReLU`, `max_pool2d`.
        own: The names of operators here.
    """
    if (found := FOREIGN_NAMES.get(name)) is not None:
        return found
    letters = name.lower().replace("_", "")
    same = {other.replace("_", ""): other for other in own}
    return same.get(letters) or same.get(_plain(name)) or _OF_MAPS.get(_plain(name))


def operator_of_two_words(first: str, second: str, own: Collection[str]) -> str | None:
    """Return the operator whose name is written as two words, in either order: `max pool`, `avgpool global`."""
    for one, other in ((first, second), (second, first)):
        found = foreign_operator(f"{one}_{other}", own)
        if found in own:
            return found
    return None


def sized_operator(name: str, own: Collection[str]) -> tuple[str, str] | None:
    """Split the name of an operator with a size in it: `conv3x3`, `maxpool2`."""
    found = re.fullmatch(r"([A-Za-z_]+?)_?([1-9][0-9]?)(?:x([1-9][0-9]?))?", name)
    operator = foreign_operator(found.group(1), own) if found else None
    if found is None or operator not in own or operator not in (*KERNEL_FIRST, "maxpool", "avgpool"):
        return None
    return operator, f"{found.group(2)}x{found.group(3) or found.group(2)}"


def absent_operator(name: str) -> str | None:
    """Return a help for an operator of other libraries that the language lacks; None for any other word.

    Such a word is not a misspelled operator: `glu` is not `gelu`.
    """
    if name in _STATEMENTS:
        return _STATEMENTS[name]
    if _ATTENTION.search(name):
        return "the language has no attention between positions; it describes convolutional networks"
    if _RECURRENT.search(name):
        return "the language has no recurrent layers; it describes convolutional networks"
    if _LOSS.search(name):
        return "remove it: a loss is an entry of the `train` section, such as `train { loss cross_entropy }`"
    if _DETECTION.search(name):
        return "the language has no operators for detection; call them in PyTorch on the features of the network"
    if _OTHER_AXES.search(name):
        return "the language has no such operator; maps have two axes, height and width"
    if _plain(name) in _RESHAPES:
        return "the language cannot reshape tensors or reorder axes; `flatten` turns a map into flat features"
    if _plain(name) == "logsoftmax":
        return "remove it: the training loss already applies `log_softmax` to the output"
    if (example := _WITH_OTHER_ARGUMENTS.get(_plain(name))) is not None:
        return f"write, for example, `{example}`"
    if _plain(name) in _ELSEWHERE:
        return "the language has no such operator; run `cnnspec list` to see all operators and blocks"
    return None


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
    **dict.fromkeys("syncbn syncbatchnorm".split(), "sync"),
    **dict.fromkeys("ghostbn ghostbatchnorm".split(), "ghost"),
    **dict.fromkeys(("henormal", "kaiming", "he", "msra"), "kaiming_normal"),
    "heuniform": "kaiming_uniform",
    "glorotnormal": "xavier_normal",
    **dict.fromkeys(("glorotuniform", "xavier", "glorot"), "xavier_uniform"),
    "zeros": "zero",
    **dict.fromkeys(("truncatednormal", "truncnormal"), "trunc_normal"),
}
"""Choices of a recipe in other libraries, in lower case and without `_`, with their names here."""

_ARGUMENTS = {
    "c": "out_channels out_features num_filters num_output out filters channels units width dim",
    "kernel": "kernel_size kernel_shape filter_size ksize size k pool_size",
    "stride": "strides s downsample down",
    "pad": "padding p",
    "groups": "num_groups",
    "dilation": "dilation_rate",
    "bias": "use_bias",
    "p": "rate",
    "negative_slope": "alpha slope",
    "factor": "scale_factor upscale_factor scale",
    "size": "output_size",
    "act": "activation activation_fn nonlinearity act_layer",
    "subsample": "stride strides s downsample",
    "lr": "learning_rate",
    "weight_decay": "wd decay",
}
FOREIGN_ARGUMENTS = {
    other: [name for name, others in _ARGUMENTS.items() if other in others.split()]
    for other in " ".join(_ARGUMENTS.values()).split()
}
"""Arguments in other libraries, with their possible names here."""


FOREIGN_ENTRIES = {
    **dict.fromkeys(("lr_schedule", "lr_scheduler", "scheduler", "learning_rate_schedule"), "schedule"),
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs"), "epochs"),
    **dict.fromkeys(("batch_size", "batchsize", "bs"), "batch"),
    **dict.fromkeys(("dataset", "datasets"), "data"),
    **dict.fromkeys(("augmentation", "augmentations", "transform", "transforms"), "augment"),
    **dict.fromkeys(("criterion", "loss_fn", "objective"), "loss"),
    **dict.fromkeys(("grad_clip", "gradient_clip", "clip_grad", "clip_grad_norm", "max_norm"), "clip"),
    **dict.fromkeys(("early_stopping", "patience"), "early_stop"),
    **dict.fromkeys(("fp16", "half"), "precision fp16"),
    **dict.fromkeys(("amp", "bf16", "mixed_precision"), "precision bf16"),
}
"""Entries of a recipe in other libraries, with their names here."""
FOREIGN_OPTIONS = {
    **dict.fromkeys(("device", "accelerator"), "accelerator"),
    **dict.fromkeys(("devices", "gpus", "num_gpus"), "devices"),
    **dict.fromkeys(("workers", "num_workers"), "workers"),
    **dict.fromkeys(("log", "logger", "logging"), "log"),
    "strategy": "strategy",
    "cache": "cache",
}
"""Settings in other libraries that are options of the command line here."""


def foreign_choice(name: str, table: Collection[str]) -> str | None:
    """Return the choice of a recipe that other libraries, or other spellings, call by a name."""
    plain = re.sub(r"[\W_]", "", name.lower())
    own = next((own for own in table if own.replace("_", "") == plain), _CHOICES.get(plain, ""))
    return own if own in table else None


INFERRED = ("in_channels", "in_features", "num_features", "num_channels", "inplanes", "in_planes", "in_ch", "in")
"""Arguments in other libraries that are inferred here."""

KERNEL_FIRST = ("conv", "conv_transpose")
"""Operators whose first argument is the kernel here, and the channels in other libraries."""

_ORDERS = {
    "Conv2d": " c kernel stride pad dilation groups bias",
    "ConvTranspose2d": " c kernel stride pad out_pad groups bias dilation",
    "Conv2D": "c kernel stride pad data_format dilation groups activation bias",
    "Conv2DTranspose": "c kernel stride pad out_pad data_format dilation activation bias",
    "DepthwiseConv2D": "kernel stride pad depth_multiplier data_format dilation activation bias",
    "Dense": "c activation bias",
    **dict.fromkeys(("MaxPooling2D", "MaxPool2D", "AveragePooling2D", "AvgPool2D"), "kernel stride pad"),
    **dict.fromkeys(("GlobalAveragePooling2D", "GlobalMaxPooling2D", "Flatten"), "data_format"),
    "BatchNormalization": "axis",
    "SpatialDropout2D": "p data_format",
    "Linear": " c bias",
    "MaxPool2d": "kernel stride pad",
    "AvgPool2d": "kernel stride pad",
    "Dropout": "p",
    "BatchNorm2d": " eps momentum",
    "GroupNorm": "groups  eps affine",
    "LeakyReLU": "negative_slope",
    "AdaptiveAvgPool2d": "size",
    "Upsample": "size factor mode align_corners",
    "UpSampling2D": "factor data_format mode",
    "PixelShuffle": "factor",
    "Dropout2d": "p",
}
"""Positional arguments of modules in other libraries, by their names here; an inferred one is empty."""
_FIRST = {
    **dict.fromkeys(("dropout", "dropout2d"), "p"),
    **dict.fromkeys(("upsample", "pixel_shuffle"), "factor"),
    "gn": "groups",
    "leaky_relu": "negative_slope",
    "adaptive_avgpool": "size",
}
"""The first argument of operators without a kernel, which is written without its name."""
_KNOWN = {"", *INFERRED}
_VALUES = {"True": "true", "False": "false", "valid": "0"}
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_PAIR = re.compile(r"[(\[]\s*([0-9]+)\s*,\s*([0-9]+)\s*[)\]]")
"""A size in Python: `(3, 3)`."""
_CONV_DEFAULTS = {"stride": "1", "dilation": "1", "groups": "1", "out_pad": "0"}
"""Defaults of convolutions, here and in other libraries."""


@dataclass(frozen=True)
class Translation:
    """A call of a module of another library, written in this language.

    Attributes:
        text: The call.
        dropped: Arguments that have no equivalent.
        is_example: The module lacks arguments, which the call makes up.
    """

    text: str
    dropped: tuple[str, ...]
    is_example: bool

    @property
    def help(self) -> str:
        """The help that proposes the call; it names every argument that the call does not contain."""
        help = f"write{', for example,' if self.is_example else ''} `{self.text}`"
        if self.dropped:
            verb = "has" if len(self.dropped) == 1 else "have"
            help += f"; {', '.join(f'`{arg}`' for arg in self.dropped)} {verb} no equivalent"
        return help


def split_arguments(text: str) -> list[str]:
    """Split the arguments of a call of Python at its commas, except for those in brackets."""
    return [arg for arg in re.split(r",(?![^()\[\]]*[)\]])", text) if arg.strip()]


def translation(name: str, args: Sequence[str]) -> Translation | None:
    """Translate a call of a module of torch or Keras; None for a module without a known order of arguments.

    Args:
        name: The module.
        args: Its arguments, keyword arguments with their names.
    """
    order = _order(name, args)
    if order is None:
        return None
    places, given, dropped = order.split(" "), dict[str, str](), list[str]()
    mode = ""
    for place, arg in zip_longest(places, args):
        if arg is None:
            break
        key, _, value = arg.rpartition("=")
        key, value = key.strip() or place, _PAIR.sub(r"\1x\2", value.strip().strip("\"'"))
        if key == "padding_mode" and name == "Conv2d" and value in _PADDING_MODES:
            mode = value
            continue
        if not re.fullmatch(r"[\w.+*/ -]+", value):
            if not name.endswith(("2D", "Dense", "BatchNormalization")):
                return None
            dropped.append(arg.strip())
            continue
        known = [key, *FOREIGN_ARGUMENTS.get(key or "", ())]
        own = next((own for own in known if own in places or own in INFERRED), None)
        if own is None or own in ("axis", "data_format", "depth_multiplier") or (own and own in given):
            dropped.append(arg.strip())
        else:
            value = _VALUES.get(value, value)
            given[own] = value if re.fullmatch(r"[\w.]+", value) else f"({value})"
    (meant, _, flag), is_example = FOREIGN_NAMES[name].partition(" "), False
    after = _after(given.pop("activation", ""))
    if name.endswith("2D"):
        _pad_of_keras(meant, given, dropped)
    if meant in KERNEL_FIRST and not flag:
        is_example = not given.keys() >= {"kernel", "c"}
        given = {"kernel": "3", "c": "16", **given}
        given = {key: value for key, value in given.items() if _CONV_DEFAULTS.get(key) != value}
    before = _pad_before(given, mode, dropped)
    if meant == "conv":  # their defaults differ here
        given = {"pad": "0", "bias": "true", **given}
        given = {key: value for key, value in given.items() if (key, value) not in (("bias", "false"), ("pad", "same"))}
    kernel, c = (given.pop(key, "") for key in ("kernel", "c"))
    first = given.pop(_FIRST[meant], "") if meant in _FIRST else ""
    kernel = f"{kernel}x{kernel}" if kernel.isdigit() else kernel
    rest = [k if value == "true" else f"{k}={value}" for k, value in given.items() if k not in _KNOWN]
    text = " ".join(filter(None, (before, meant, kernel, c, first, *rest, flag, after)))
    return Translation(text, tuple(dropped), is_example)


def _pad_before(given: dict[str, str], mode: str, dropped: list[str]) -> str:
    """Return the code for padding with other values than 0, which is a call, and remove it from the arguments."""
    if mode in ("", "zeros") or given.get("pad", "0") == "0":
        return ""
    if given["pad"] == "same":
        dropped.append(f'padding_mode="{mode}"')
        return ""
    return f"pad {given.pop('pad')} mode={mode} |"


def _after(activation: str) -> str:
    """Return the code for the activation of a layer of Keras."""
    name = activation.rpartition(".")[2]
    return "" if name in ("", "linear", "None") else f"| {FOREIGN_NAMES.get(name, name)}"


def _pad_of_keras(meant: str, given: dict[str, str], dropped: list[str]) -> None:
    """Replace the padding of a layer of Keras: `same` depends on the size if the stride is not 1."""
    if meant == "conv_transpose" and given.get("pad") == "same":
        dropped.append(f"padding='{given.pop('pad')}'")
    odd = all(int(number) % 2 for number in re.findall("[0-9]+", given.get("kernel", "3")))
    if given.get("pad") == "same" and not (meant == "conv" and odd and given.get("stride", "1") in ("1", "1x1")):
        given["pad"] = "tf_same"
    if meant in ("maxpool", "avgpool") and given.get("pad") == "0":
        del given["pad"]


def _order(name: str, args: Sequence[str]) -> str | None:
    """Return the order of the arguments of a module; a function has that of Keras, unless it is given more channels."""
    if name in ("Conv2d", "ConvTranspose2d"):
        given = sum("=" not in arg or arg.split("=")[0].strip() in ("out_channels", "kernel_size") for arg in args)
        return _ORDERS[name] if given >= 3 else _ORDERS[name].strip()  # without the number of input channels
    if name not in ("conv2d", "convolution", "deconv"):
        return _ORDERS.get(name)
    numbers = [int(arg) for arg in args if arg.strip().isdigit()]
    with_input = len(numbers) > 2 and numbers[0] < numbers[1]
    return " c kernel stride pad" if with_input else "c kernel stride pad"


def translated(name: str, args: Sequence[str]) -> str | None:
    """Translate a call of a module of torch or Keras, or return None if an argument has no equivalent."""
    found = translation(name, args)
    if found is None:
        alone = [arg.strip() for arg in args] in ([], ["inplace=True"], ["True"])
        return FOREIGN_NAMES.get(name) if alone and name not in _ORDERS else None
    return None if found.dropped or found.is_example else found.text
