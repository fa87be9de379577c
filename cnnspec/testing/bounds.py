"""Try every argument of the language at and beyond its bounds, in a real training step of two images.

The cases are made from the signatures: of operators, initializations, augmentations, optimizers, schedules, datasets,
and the other entries of a recipe. Each value is refused by the check, or the run completes with finite weights and
losses, or it ends with a named error E04xx or E05xx. Nothing else is allowed.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from pathlib import Path
from typing import Any
from unittest import mock

from cnnspec.api import loads
from cnnspec.diagnostics import CnnspecError
from cnnspec.ops import OPS, Op
from cnnspec.ops.inits import INITS, InitScheme, allowed_inits
from cnnspec.recipe import AUGMENTATIONS, DATA_SETS, OPTIMIZERS, SCHEDULES, Augmentation, Optimizer, Scalars
from cnnspec.schema import Bounds, Declared, Interval, Parameter, Type, Word
from cnnspec.testing.isolate import Isolated, Outcome

HUGE = 10**9
WORK = 2 * 10**9
"""Multiply-adds per image beyond which a case is only checked: its time is that of the work, not of a fault."""


@dataclass(frozen=True)
class Case:
    """Values of some arguments in a spec.

    Attributes:
        place: Where the arguments belong: `bn of a map`, `optimizer sgd`.
        kind: The class with the signature; None for an argument that no class declares.
        values: The tried values by argument.
        text: The spec.
        dangerous: Whether it belongs to the sample of the default test suite.
    """

    place: str
    kind: type[Declared] | None
    values: tuple[tuple[str, Any], ...]
    text: str
    dangerous: bool = False

    @property
    def name(self) -> str:
        return f"{self.place}: {' '.join(f'{name}={written(value)}' for name, value in self.values)}"


# --- values --------------------------------------------------------------------------------------


def written(value: Any) -> str:
    """Write a value in the language."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Interval):
        return f"{written(value[0])}..{written(value[1])}"
    if isinstance(value, tuple):
        return "x".join(map(written, value))
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, (int, float)) and value < 0:
        return f"(-{written(-value)})"
    if isinstance(value, float):
        if 1e15 < value <= 1e18:
            return f"({value / 1e9:.1f} * 1e9)"
        return f"{value:.1f}" if 1 <= value <= 1e15 and value.is_integer() else repr(value).replace("e+", "e")
    return str(value)


_DANGEROUS_FLOATS = (0.0, 1e15)
_FLOATS = (
    *_DANGEROUS_FLOATS, 1.2e-38, -1e15, -1.0, 0.5, 1.0, 5.0, 1e-300, 1e-45, 1e-8, 1e-4,
    -1e-8, -1e-300, 1e9, 1e18, 1e38, 1e300, -1e18,
)  # fmt: skip
_DANGEROUS_INTEGERS = (0, HUGE)
_INTEGERS = (*_DANGEROUS_INTEGERS, 1, -1, 2, 3, 7, 1_000, 10**6, HUGE + 1, 2**31, 2**63)
_DANGEROUS_SIZES = ((0, 0), (1, 1_000), (HUGE, HUGE))
_SIZES = (
    *_DANGEROUS_SIZES, (1, 1), (0, 1), (1, 0), (2, 2), (3, 3), (1, 3), (7, 7), (12, 12), (1_000, 1), (1_000, 1_000),
    (1, HUGE), (HUGE, 1), (2**31, 2**31),
)  # fmt: skip
_ENDS = (-1, 0, 1e-300, 1e-45, 1.2e-38, 1e-8, 0.5, 1, 3, 1e15)
_DANGEROUS_INTERVALS = ((0, 0), (0, 1), (1.2e-38, 1e15), (1e15, 1e15))
_INTERVALS = (*_DANGEROUS_INTERVALS, *((low, high) for low, high in product(_ENDS, repeat=2)))
_DANGEROUS_LISTS = ([0], [HUGE])
_LISTS = (
    *_DANGEROUS_LISTS, [1], [-1], [], [1, 1], [3, 1, 2], [1, 2, 3], [1, 1, 1, 1], [-1, -1, -1, -1], [-3, 1, 0, 0],
    [1_000, 0, 0, 0], [100_000, 0, 0, 0], [-HUGE], [2**31], [HUGE, HUGE], [10**5, 10**5, 10**5, 10**5],
)  # fmt: skip


def _candidates(type_: Type) -> tuple[list[Any], list[Any]]:
    """Return the most dangerous values of a type, and all values."""
    words = [Word(word) for word in type_.words]
    match type_.kind:
        case "float":
            beyond = [float(value) for bound in _numbers(type_.bounds) for value in _around(bound)]
            return [*_DANGEROUS_FLOATS], [*words, *beyond, *_FLOATS]
        case "int":
            beyond = [int(bound) + step for bound in _numbers(type_.bounds) for step in (-1, 0, 1)]
            return [*_DANGEROUS_INTEGERS], [*words, *beyond, *_INTEGERS]
        case "size":
            return [*_DANGEROUS_SIZES], [*words, *_SIZES]
        case "interval":
            return [Interval(ends) for ends in _DANGEROUS_INTERVALS], [Interval(ends) for ends in _INTERVALS]
        case "list":
            return list(_DANGEROUS_LISTS), list(_LISTS)
        case "bool":
            return [], [True, False]
        case "word" | "init":
            return [], words
        case _:
            return [], []


def _numbers(bounds: Bounds) -> list[float]:
    return [bound for bound in (bounds.least, bounds.greatest, bounds.above, bounds.below) if bound is not None]


def _around(bound: float) -> tuple[float, ...]:
    """Return a bound and the numbers next to it."""
    near = (math.nextafter(bound, -math.inf), bound, math.nextafter(bound, math.inf))
    return (*near, bound - 1e-6, bound + 1e-6)


def _values(type_: Type) -> list[tuple[Any, bool]]:
    dangerous, every = _candidates(type_)
    marked = {written(value): (value, False) for value in every}
    marked |= {written(value): (value, True) for value in dangerous}
    return list(marked.values())


_PAIR_FLOATS = (0.0, 1.2e-38, 1.0, 1e15, -1e15)
_PAIR_VALUES: dict[str, tuple[Any, ...]] = {
    "float": _PAIR_FLOATS,
    "int": (1, 2, 8, HUGE),
    "size": ((1, 1), (5, 5), (1, 1_000), (HUGE, HUGE)),
    "interval": tuple(map(Interval, ((0, 1), (1e-8, 1e-8), (1, 1e15), (3, 3)))),
    "list": ([1], [HUGE]),
    "bool": (True, False),
}


def _pair_values(parameter: Parameter) -> tuple[Any, ...]:
    words = tuple(Word(word) for word in parameter.type.words[:3])
    bounds = (_numbers(parameter.type.bounds)) if parameter.type.kind == "float" else ()
    return (*words, *bounds, *_PAIR_VALUES.get(parameter.type.kind, ()))


# --- specs ---------------------------------------------------------------------------------------

_GIVEN: dict[str, Mapping[str, Any]] = {
    "conv": {"kernel": (3, 3), "c": 8},
    "upsample": {"factor": (2, 2)},
    "uniform": {"low": -0.5, "high": 0.5},
    "multistep": {"at": [1]},
}
"""The other arguments of a call, where one value per type does not do."""
_USUAL: dict[str, Any] = {"int": 2, "float": 0.5, "size": (2, 2), "interval": Interval((0, 4)), "list": [1]}
_INSTEAD = {"size": "factor"}
"""Arguments that replace another one."""
_TRAIN = """
train {{
    {}
}}
"""
_RECIPE = {"data": "fashion_mini val=0 train=2 test=2", "batch": "2", "epochs": "1"}


def _base(kind: type[Declared]) -> dict[str, Any]:
    """Return usual values of the required arguments."""
    types = {name: kind.parameters[name].type for name in kind.required}
    usual = {name: Word(type_.words[0]) if type_.words else _USUAL[type_.kind] for name, type_ in types.items()}
    return {**usual, **_GIVEN.get(kind.name, {})}


def _call(name: str, kind: type[Declared], values: Mapping[str, Any]) -> str:
    """Write a call with these values, and usual ones for the other required arguments."""
    given = _base(kind)
    for own, other in _INSTEAD.items():
        if own in values:
            given.pop(other, None)
    return " ".join([name, *(f"{key}={written(value)}" for key, value in {**given, **values}.items())])


def _spec(body: str = "conv 3x3 8 | bn | relu", head: str = "", entries: Mapping[str, str] | None = None) -> str:
    recipe = _TRAIN.format("\n    ".join(f"{key} {value}" for key, value in {**_RECIPE, **(entries or {})}.items()))
    return f"network bounds\ninput 3x12x12\nclasses 10\n{head}\nstem {body}\n{recipe}"


_POOLED = " | global_avgpool | flatten | linear classes"
_FLAT = ("flatten", "linear")


@dataclass(frozen=True)
class Place:
    """A place where a class is called, and the spec around the call.

    `again` marks a further place of a class, where only its most dangerous values are tried.
    """

    name: str
    kind: type[Declared]
    callee: str
    before: str = ""
    after: str = ""
    head: str = ""
    entry: str = ""
    again: bool = False

    def case(self, values: Mapping[str, Any], dangerous: bool = False) -> Case:
        call = _call(self.callee, self.kind, values)
        if self.entry:
            text = _spec(f"conv 3x3 8 | bn | relu{_POOLED}", entries={self.entry: call})
        elif self.head:
            text = _spec(self.before, self.head + call)
        else:
            text = _spec(f"{self.before}{call}{self.after}")
        return Case(self.name, self.kind, tuple(values.items()), text, dangerous)


def _places() -> Iterator[Place]:
    for name, op in OPS.items():
        after = " | linear classes" if name in _FLAT else _POOLED
        before = "conv 3x3 8 | flatten | " if name == "linear" else "conv 3x3 8 | "
        yield Place(f"{name} of a map", op, name, before, after)
        try:
            made = op(**_base(op))
            made.infer((8,))
        except Exception:  # noqa: BLE001 - the operator takes no flat features
            continue
        if name not in _FLAT:
            yield Place(
                f"{name} of features",
                op,
                name,
                "conv 3x3 8 | global_avgpool | flatten | ",
                " | linear classes",
                again=True,
            )
    for target in ("conv", "conv_transpose", "linear", "bn", "gn", "ln"):
        for name in allowed_inits(target):
            body = "conv 3x3 8 | bn | conv_transpose 2x2 8 | gn 2 | ln | relu" + _POOLED
            yield Place(
                f"init {target} {name}", INITS[name], name, body, head=f"init {target} ", again=target != "conv"
            )
    tables: tuple[tuple[str, Mapping[str, type[Declared]]], ...] = (
        ("augment", AUGMENTATIONS), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES),
    )  # fmt: skip
    for entry, table in tables:
        for name, kind in table.items():
            yield Place(f"{entry} {name}", kind, name, entry=entry)


def _single(place: Place) -> Iterator[Case]:
    yield place.case({}, not place.again)
    for name, parameter in place.kind.parameters.items():
        for value, dangerous in _values(parameter.type):
            if dangerous or not place.again:
                yield place.case({name: value}, dangerous and not place.again)


def _pairs(place: Place) -> Iterator[Case]:
    for one, other in combinations(place.kind.parameters.values(), 2):
        for values in product(_pair_values(one), _pair_values(other)):
            yield place.case(dict(zip((one.name, other.name), values, strict=True)))


def _scalars() -> Iterator[Case]:
    """The entries of a recipe with a single value, each alone and all pairs."""

    def case(values: Mapping[str, Any], dangerous: bool = False) -> Case:
        entries = {name: written(value) for name, value in values.items()}
        if values.get("epochs", 1) != 1:
            entries["minutes"] = "0"  # one step
        return Case(
            "recipe", Scalars, tuple(values.items()), _spec(f"conv 3x3 8 | bn{_POOLED}", "", entries), dangerous
        )

    parameters = {name: p for name, p in Scalars.parameters.items() if name != "compile"}
    for name, parameter in parameters.items():
        for value, dangerous in _values(parameter.type):
            yield case({name: value}, dangerous)
    for one, other in combinations(parameters.values(), 2):
        for values in product(_pair_values(one), _pair_values(other)):
            yield case(dict(zip((one.name, other.name), values, strict=True)))


def _others() -> Iterator[Case]:
    """Arguments that no class declares: the input, the classes, the weight of a head; and datasets."""
    for size in _SIZES:
        text = _spec(f"conv 3x3 8{_POOLED}").replace("12x12", written(size))
        yield Case("input", None, (("size", size),), text, size in _DANGEROUS_SIZES)
    for value in _FLOATS:
        aux = f"aux extra from @seen weight={written(value)} {{ global_avgpool | flatten | linear classes }}\n"
        text = _spec(f"conv 3x3 8\nseen: relu\nhead identity{_POOLED}").replace("\ntrain", f"\n{aux}\ntrain")
        yield Case("aux", None, (("weight", value),), text, value in _DANGEROUS_FLOATS)
    for name, kind in DATA_SETS.items():
        for argument, parameter in kind.parameters.items():
            for value, dangerous in _values(parameter.type):
                path = '"images" ' if "path" in kind.parameters else ""
                limits = [n for n in ("train", "test") if n in kind.parameters and n != argument]
                few = "".join(f" {limit}=2" for limit in limits)
                entry = f"{name} {path}{argument}={written(value)}{few}"
                text = _spec(f"conv 3x3 8{_POOLED}", entries={"data": entry})
                yield Case(f"data {name}", kind, ((argument, value),), text, dangerous and name == "fashion_mini")


def _calls_of_inits() -> Iterator[Case]:
    """Initializations as an argument of a call, where their values are positional."""
    for name, scheme in INITS.items():
        defaults = {
            n: p.default if not p.required else _GIVEN.get(name, {}).get(n, 0.5) for n, p in scheme.parameters.items()
        }
        defaults = {n: value for n, value in defaults.items() if value is not None}
        for argument in scheme.parameters:
            for value, _ in _values(scheme.parameters[argument].type):
                values = {**defaults, argument: value}
                listed = ", ".join(written(values[n]) for n in scheme.parameters if n in values)
                text = _spec(f"conv 3x3 8 init={name}({listed}) | bn{_POOLED}")
                yield Case(f"call of {name}", scheme, ((argument, value),), text)


@lru_cache(maxsize=2)
def cases(*, pairs: bool = True) -> tuple[Case, ...]:
    """Return all cases in a fixed order, the most dangerous ones first."""
    found: dict[str, Case] = {}
    every = [*(case for place in _places() for case in _single(place)), *_scalars(), *_others(), *_calls_of_inits()]
    if pairs:
        every += [case for place in _places() if not place.again for case in _pairs(place)]
    for case in sorted(every, key=lambda case: not case.dangerous):
        found.setdefault(case.text, case)
    return tuple(found.values())


# --- torch ---------------------------------------------------------------------------------------

STRICTER: dict[tuple[str, str], str] = {
    ("bn", "momentum"): "the weight of an average",
    ("in_norm", "momentum"): "the weight of an average",
    **dict.fromkeys(
        (("conv", name) for name in ("gain", "gain_init", "gamma", "eps")), "no effect without `standardize`"
    ),
    ("linear", "c"): "a layer without outputs",
    ("upsample", "align_corners"): "no effect with `nearest`, where torch refuses it, too",
    ("normal", "std"): "equal weights; `constant` says so",
    ("trunc_normal", "std"): "equal weights; `constant` says so",
    ("muon", "weight_decay"): "torch refuses it as an argument of Muon",
}
"""Values that are refused although torch runs them, by class and argument, with the reason."""


def _accepted_by_torch(case: Case) -> str:
    """Return what torch does with values that the check refuses, if it runs them with finite results."""
    kind = case.kind
    if kind is None or any((kind.name, name) in STRICTER for name, _ in case.values):
        return ""
    runs = {Op: _operator_runs, InitScheme: _init_runs, Optimizer: _optimizer_runs, Augmentation: _augmentation_runs}
    run = next((run for base, run in runs.items() if issubclass(kind, base)), None)
    if run is None:
        return ""
    values = _base(kind)
    values |= {name: tuple(value) if isinstance(value, list) else value for name, value in case.values}
    for own, other in _INSTEAD.items():
        if own in dict(case.values):
            values.pop(other, None)
    with Isolated(lambda _: run(kind(**values)), seconds=3) as call:
        outcome = call(0)
    return f"torch runs {case.name}" if outcome.value else ""


def _operator_runs(op: Op) -> bool:
    import torch

    from cnnspec.backends.torch.layers import ROWS

    x = torch.randn(2, 8, 12, 12, requires_grad=True)
    layer = ROWS[op.name](op, (8, 12, 12))
    output = layer(x if op.name != "linear" else x.mean((2, 3)))
    output.square().mean().backward()
    tensors = [output, x.grad, *(weight.grad for weight in layer.parameters())]
    return all(tensor is None or bool(tensor.isfinite().all()) for tensor in tensors)


def _init_runs(scheme: InitScheme) -> bool:
    import torch

    from cnnspec.backends.torch.inits import initialize

    layer = torch.nn.Conv2d(8, 8, 3)
    initialize(layer, scheme)
    return all(bool(weight.isfinite().all()) for weight in layer.parameters())


def _optimizer_runs(optimizer: Optimizer) -> bool:
    import torch

    from cnnspec.training.loop.optimizers import OPTIMIZERS as ROWS

    weights = [torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4))]
    made = ROWS[optimizer.name](weights, **optimizer.settings())
    for _ in range(2):
        made.zero_grad()
        sum(weight.square().sum() for weight in weights).backward()  # type: ignore[union-attr]
        made.step()
    return all(bool(weight.isfinite().all()) for weight in weights)


_TORCHVISION: dict[str, Callable[[Any, Any], Any]] = {
    "hflip": lambda v2, a: v2.RandomHorizontalFlip(a.p),
    "vflip": lambda v2, a: v2.RandomVerticalFlip(a.p),
    "random_crop": lambda v2, a: v2.RandomCrop((12, 12), (a.pad[1], a.pad[0])),
    "translate": lambda v2, a: v2.RandomAffine(0, translate=(a.by, a.by)),
    "random_resized_crop": lambda v2, a: v2.RandomResizedCrop((12, 12), a.scale, a.ratio),
    "rotate": lambda v2, a: v2.RandomRotation(a.degrees),
    "color_jitter": lambda v2, a: v2.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue),
    "random_erasing": lambda v2, a: v2.RandomErasing(a.p, a.scale, a.ratio),
    "randaugment": lambda v2, a: v2.RandAugment(a.ops, a.magnitude),
}


def _augmentation_runs(augmentation: Augmentation) -> bool:
    import torch
    from torchvision.transforms import v2

    row = _TORCHVISION.get(augmentation.name)
    if row is None:
        return False
    transform = row(v2, augmentation)
    for seed in range(20):
        torch.manual_seed(seed)
        transform(torch.randint(256, (3, 12, 12), dtype=torch.uint8))
    return True


# --- outcomes ------------------------------------------------------------------------------------

REFUSED, COMPLETED, NAMED, LARGE = "refused by the check", "completed", "ended with a named error", "checked only"
"""The outcomes that are allowed."""
MISWRITTEN = "E0101", "E0201", "E0202"
"""The codes of errors that no value causes: the case itself is wrong."""


_trials = Isolated(lambda number: _attempt(cases()[number]))


def try_case(number: int) -> tuple[str, str, Outcome]:
    """Return the outcome of a case, what it is about, and the call; an outcome that is not allowed is `wrong`."""
    outcome = _trials(number)
    if outcome.failure:
        return "wrong", outcome.failure, outcome
    return outcome.value[0], outcome.value[1], outcome


def _attempt(case: Case) -> tuple[str, str]:
    """Check and train a case, in a process of its own."""
    try:
        graph = loads(case.text)
    except CnnspecError as error:
        found = error.diagnostics[0]
        if found.code in MISWRITTEN:
            return "wrong", f"the test is wrong: {found.code} {found.message}"
        if found.code == "E0215" and (reason := _accepted_by_torch(case)):
            return "wrong", f"{found.code} {found.message}, but {reason}"
        return REFUSED, f"{found.code} {found.message}"
    if graph.macs > WORK:
        return LARGE, f"{graph.macs / 1e9:,.0f} billion multiply-adds"
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            result = _train(case, graph, Path(folder))
        except CnnspecError as error:
            code = error.diagnostics[0].code
            return (NAMED if code[:3] in ("E04", "E05") else "wrong"), f"{code} {error.diagnostics[0].message}"
        weights = load_file(result.folder / "checkpoints" / "best.safetensors")
    infinite = [name for name, weight in weights.items() if not weight.isfinite().all()]
    infinite += [n for n, value in result.values.items() if isinstance(value, float) and not math.isfinite(value)]
    return ("wrong", f"not finite: {', '.join(infinite)}") if infinite else (COMPLETED, "")


def _train(case: Case, graph: Any, folder: Path) -> Any:
    from rich.console import Console

    from cnnspec.training.runs import train as module
    from cnnspec.training.runs.options import TrainOptions

    options = TrainOptions(
        out=folder, offline=True, plots=False, brief=True, memory_format="channels_last", threads=1,
        accelerator="cpu", devices=1, allocator="default", console=Console(quiet=True),
    )  # fmt: skip
    if case.place.startswith("data"):
        _write_images(folder / "images")
        return module.train(graph, options)
    images = two_images(graph.input_shape[0], graph.output_shape[0])
    with mock.patch.object(module, "load_data", return_value=images):
        return module.train(graph, options)


def two_images(channels: int, classes: int) -> Any:
    """Return a dataset of two images of 12x12 to train on and two others to test on."""
    import torch

    from cnnspec.training.data.datasets import ImageData, Pixels

    drawn = torch.randint(256, (4, channels, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    train, test = (Pixels(part, torch.tensor([0, 1]) % classes) for part in (drawn[:2], drawn[2:]))
    return ImageData("two", classes, train, None, test, lambda: ((0.5,) * channels, (0.25,) * channels))


def _write_images(folder: Path) -> None:
    """Write a dataset of ten classes with two images each to train on, and one to test on."""
    import numpy as np
    from PIL import Image

    for split, count in (("train", 2), ("test", 1)):
        for label, number in product(range(10), range(count)):
            path = folder / split / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((12, 12), 20 * label, np.uint8)).save(path)
