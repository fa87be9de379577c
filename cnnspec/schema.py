"""Parameter schemas, derived from class annotations, and the value types of the language.

The annotations of an operator, initialization, optimizer, schedule, augmentation or dataset class are its parameters.
Blocks declare theirs in the language. Both are bound by the same rules.
"""

import types
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import get_annotations
from typing import Annotated, Any, ClassVar, Final, Literal, Self, Union, dataclass_transform, get_args, get_origin

Size = tuple[int, int]
"""Height and width."""


class Interval(tuple[float, float]):
    """`low..high`."""


class OpName(str):
    """An operator name as a value, `act=gelu`."""


class Word(str):
    """One of the keywords of an argument, `mode=fan_out`."""


class TensorName(str):
    """The name of a tensor as a value: `@label`, or `in`."""


class Path(str):
    """The path of a module, `layer4` or `"layer4.0"`."""


Value = bool | int | float | str | Size | Interval | OpName | TensorName | Word | tuple[Any, ...] | None


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Final = _Required()
"""The default of a required parameter."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The valid range of a value; `least` and `greatest` are inclusive, `above`, `below` and `other_than` exclusive."""

    least: float | None = None
    greatest: float | None = None
    above: float | None = None
    below: float | None = None
    other_than: float | None = None


Count = Annotated[int, Bounds(1)]
Several = Annotated[int, Bounds(2)]
CountSize = Annotated[Size, Bounds(1)]
Padding = Annotated[Size, Bounds(0)]
NotNegative = Annotated[float, Bounds(0)]
Positive = Annotated[float, Bounds(above=0)]
NotZero = Annotated[float, Bounds(other_than=0)]
Probability = Annotated[float, Bounds(0, 1)]

Kind = Literal[
    "int",
    "float",
    "bool",
    "size",
    "op",
    "str",
    "interval",
    "list",
    "numbers",
    "word",
    "init",
    "path",
    "paths",
    "tensor",
]

_KINDS: dict[Any, Kind] = {
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    Size: "size",
    Interval: "interval",
    OpName: "op",
    Path: "path",
    TensorName: "tensor",
}
_LISTS: dict[Any, Kind] = {int: "list", float: "numbers", Path: "paths"}
_PHRASES: dict[str, str] = {
    "int": "an integer",
    "float": "a number",
    "bool": "`true` or `false`",
    "size": "a size like `3x3`",
    "op": "the name of an operator",
    "str": "a string in quotes",
    "interval": "a range `start..end`",
    "list": "a list of integers like `[100, 150]`",
    "numbers": "a list of numbers like `[0.5, 0.5, 0.5]`",
    "init": "an initialization like `normal(0.01)`",
    "path": "the path of a module like `layer4`",
    "paths": "paths of modules like `[stem, layer1]`",
    "tensor": "a tensor like `@stem`, or `in`",
}


@dataclass(frozen=True, slots=True)
class Type:
    """The type of a parameter: a kind of value, a set of keywords, or both."""

    kind: Kind
    words: tuple[str, ...] = ()
    bounds: Bounds = Bounds()
    optional: bool = False

    def __str__(self) -> str:
        *others, last = [*(f"`{word}`" for word in self.words), *([] if self.kind == "word" else [_PHRASES[self.kind]])]
        return f"{', '.join(others)} or {last}" if others else last

    @property
    def single(self) -> str:
        """One value of this type, for a message: a single integer."""
        article, _, noun = str(self).partition(" ")
        return f"a single {noun}" if article in ("a", "an") else f"a single value, {self}"


def type_of(annotation: Any) -> Type:
    """Return the type in the language for a Python annotation."""
    bounds, optional, words, kind = Bounds(), False, (), None
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for member in members:
        if get_origin(member) is Annotated:
            member, bounds = get_args(member)
        if member is type(None):
            optional = True
        elif get_origin(member) is Literal:
            words = get_args(member)
        elif member in _KINDS:
            kind = _KINDS[member]
        elif isinstance(member, type) and issubclass(member, Declared):
            kind = "init"
        else:
            kind = _LISTS[get_args(member)[0]]
    return Type(kind or "word", words, bounds, optional)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a callee; `default` is `REQUIRED` if there is none."""

    name: str
    type: Type
    default: Any = REQUIRED
    once: bool = False

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Declared:
    """Base class of callees whose annotated fields are their parameters, in order.

    The keywords of a class set its constants: `class Relu(Op, name="relu")`. Instances are immutable. Two instances are
    equal if they have the same class and equal settings.
    """

    name: ClassVar[str] = ""
    """Its name in the language."""
    parameters: ClassVar[Mapping[str, Parameter]] = {}
    required: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters without a default."""

    def __init_subclass__(cls, **constants: Any) -> None:
        for name, value in constants.items():
            if not hasattr(cls, name):
                raise TypeError(f"{cls.__name__} has no constant `{name}`")
            setattr(cls, name, value)
        own = {
            name: Parameter(name, type_of(annotation), cls.__dict__.get(name, REQUIRED))
            for name, annotation in get_annotations(cls).items()  # its own; Python 3.14 makes them when they are read
            if get_origin(annotation) is not ClassVar
        }
        cls.parameters = {**cls.parameters, **own}
        cls.required = tuple(name for name, parameter in cls.parameters.items() if parameter.required)

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """Return its subclasses that have a name, by name."""
        found: dict[str, type[Self]] = {}
        for kind in cls.__subclasses__():
            found |= {kind.name: kind, **kind.kinds()} if kind.name else kind.kinds()
        return found

    def __init__(self, **settings: Any) -> None:
        for name, parameter in self.parameters.items():
            value = settings.pop(name, parameter.default)
            if value is REQUIRED:
                raise TypeError(f"missing argument `{name}` of {self.name}")
            object.__setattr__(self, name, value)
        if settings:
            raise TypeError(f"{self.name} has no argument `{next(iter(settings))}`")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot assign to `{name}`: {self.name} is immutable")

    def settings(self) -> dict[str, Any]:
        """Return the values of all parameters by name."""
        return {name: getattr(self, name) for name in self.parameters}

    def changed(self) -> dict[str, Any]:
        """Return the values that differ from the default, by name."""
        return {n: v for n, v in self.settings().items() if v != self.parameters[n].default}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.settings() == other.settings()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), *self.settings().values()))

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.changed().items())
        return f"{type(self).__name__}({inner})"

    def __str__(self) -> str:
        return self.name
