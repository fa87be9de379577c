"""Example code for the help of errors: plausible values, calls, and entries of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cnnspec.recipe import CHOICES, PIPELINES, Scalars
from cnnspec.schema import Parameter

_VALUES = {
    "c": "16",
    "kernel": "3x3",
    "groups": "1",
    "factor": "2",
    "stride": "2",
    "pad": "1",
    "dilation": "2",
    "repeat": "2",
    "range": "0..in.c//2",
    "amounts": "1",
    "every": "30",
    "at": "[60, 120]",
    "path": '"images"',
    "side": "8",
    "degrees": "15",
    "std": "0.01",
    "low": "-0.1",
}
_VALUES_BY_KIND = {
    "int": "4",
    "float": "0.1",
    "bool": "true",
    "size": "3x3",
    "op": "relu",
    "str": '"text"',
    "interval": "0.8..1.0",
    "list": "[1, 2]",
    "numbers": "[0.5, 0.5, 0.5]",
    "init": "zero",
    "path": "stem",
    "paths": "[stem]",
    "tensor": "@stem",
}
_MEANINGS = {"c": "number of output channels", "kernel": "kernel size", "groups": "number of groups"}
_ENTRIES = {
    "data": "cifar10",
    "normalize": "imagenet",
    "resize": "256",
    "augment": "hflip",
    "optimizer": "sgd",
    "schedule": "cosine",
    "loss": "cross_entropy class_weights=balanced",
    "bn_statistics": "ghost 32",
    "freeze": "stem",
    "rates": "group head lr=0.001",
}
_ENTRY_VALUES = {
    "label_smoothing": "0.1",
    "precision": "bf16",
    "ema": "0.99",
    "early_stop": "5",
    "val_every": "5",
    "mixup": "0.2",
    "cutmix": "1.0",
    "clip": "1.0",
    "accumulate": "4",
    "minutes": "30",
}


def example_value(parameter: Parameter) -> str:
    """Return a plausible value of a parameter."""
    words = parameter.type.words
    if parameter.type.kind in ("numbers", "tensor"):
        return _VALUES_BY_KIND[parameter.type.kind]
    if parameter.name == "size":
        return "7x7" if parameter.type.kind == "size" else "5"
    if parameter.name == "kernel" and parameter.type.kind == "int":
        return "3"
    return _VALUES.get(parameter.name) or _VALUES_BY_KIND.get(parameter.type.kind) or words[0]


def example_call(callee: str, parameters: Iterable[Parameter]) -> str:
    """Return a call with values for the required parameters: `conv 3x3 16`."""
    named = [parameter for parameter in parameters if parameter.required or parameter.name == "c"]
    return " ".join((callee, *map(example_value, named)))


def meaning(callee: str, parameter: Parameter) -> str:
    """Describe a parameter: the number of output channels."""
    if callee == "linear":
        return "the number of output features"
    if parameter.type.kind == "tensor":
        return f"the tensor `{parameter.name}`"
    described = _MEANINGS.get(parameter.name)
    return f"the {described}" if described else f"a value for `{parameter.name}`"


def example_entry(word: str) -> str:
    """Return an entry of the `train` section with a plausible value: `optimizer sgd`."""
    if word in _ENTRIES:
        return f"{word} {_ENTRIES[word]}"
    parameter = Scalars.parameters[word]
    if parameter.type.kind == "bool":
        return f"{word} true"
    value = _ENTRY_VALUES.get(word) or (parameter.type.words or (parameter.default,))[-1]
    return f"{word} {value}"


def move_into_train(text: str, word: str, value: str) -> str:
    """Return the help for an entry of the recipe outside the `train` section.

    Args:
        text: The file.
        word: The first word of the entry.
        value: The rest of it; if there is none, the help has an example.
    """
    sign, written = (":", f"{word} {value}") if value else (", for example", example_entry(word))
    if re.search(r"^[ \t]*train\b", text, re.MULTILINE):
        return f"move it into the `train` section{sign} `{written}`"
    return f"write it in a `train` section{sign} `train {{ {written} }}`"


def entry_with(argument: str, value: str) -> str | None:
    """Return an entry of the `train` section with this argument, `optimizer sgd lr=0.1`; None if there is none."""
    for word, table in CHOICES.items():
        for choice in table.values():
            if argument in choice.parameters and word not in PIPELINES:
                others = [p for p in choice.parameters.values() if p.required and p.name != argument]
                named = [p for p in choice.parameters.values() if p.name == argument or p.required]
                given = [f"{p.name}={value if p.name == argument else example_value(p)}" for p in named]
                if not choice.parameters[argument].required:
                    given = [*(example_value(p) for p in others), f"{argument}={value}"]
                entry = " ".join((word, choice.name, *given))
                return entry.replace(f"{word} {word} ", f"{word} ")
    return None
