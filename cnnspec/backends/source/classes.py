"""The classes of the generated code: scopes of one structure, with parameters for the values that differ."""

from __future__ import annotations

import builtins
import keyword
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnnspec.backends.source.layout import literal
from cnnspec.backends.source.rows import Value, class_sources
from cnnspec.backends.source.scopes import (
    Chain,
    Expression,
    Item,
    Loop,
    Made,
    Path,
    Scope,
    Slot,
    Turns,
    compress_chain,
    compress_items,
)
from cnnspec.limits import MAX_DEPTH

ABSENT: Any = object()
"""The value of a module that is left out."""
CONSTANTS = "CLASSES", "EXPORT", "PREPROCESSING", "SPEC"
RESERVED = {*dir(builtins), *keyword.kwlist, "torch", "nn", "Tensor", "F", *CONSTANTS}
"""Names that no class has."""
_LEADING = {"in_channels", "out_channels", "in_features", "out_features", "channels"}
_COUNTS = {*_LEADING, "num_features", "num_channels", "start", "length"}
"""Arguments that may be computed from one another."""
_MAX_COMPARED = 16


@dataclass
class Parameter:
    """A parameter of a class, with its value in each instance."""

    name: str
    default: str | None
    values: list[Value]

    @property
    def type(self) -> str:
        found = dict.fromkeys("None" if value is None else type(value).__name__ for value in self.values)
        return " | ".join(found)


@dataclass
class Class:
    """A class.

    Attributes:
        name: Its name.
        block: The block of the spec, or an empty string.
        items: Its statements; a single `Chain` if it is a sequence.
        inputs: The number of its inputs.
        results: The numbers of its outputs.
        names: The tensor parameter of each input, as in a `Scope`.
        parameters: Its parameters.
        expressions: The code of each value of its items.
    """

    name: str
    block: str
    items: list[Item]
    inputs: int
    results: list[int]
    names: tuple[str, ...] = ()
    parameters: list[Parameter] = field(default_factory=list[Parameter])
    expressions: list[str] = field(default_factory=list[str])

    @property
    def is_chain(self) -> bool:
        return len(self.items) == 1 and isinstance(self.items[0].structure, Chain) and not self.items[0].path


def slots_of(structure: Any, label: str) -> Iterator[tuple[str, Slot]]:
    """Yield the label of the module and the argument for each value of a structure."""
    match structure:
        case Made() | Expression():
            yield from ((label, slot) for slot in structure.slots)
        case Chain():
            for position, entry in enumerate(structure.entries):
                yield from slots_of(entry, f"{label}_{position}" if label else f"layer{position}")
        case Turns() | Loop():
            yield label, Slot("count", None, False)
            parts = structure.entries if isinstance(structure, Turns) else [item[1] for item in structure.items]
            for part in parts:
                for name, slot in slots_of(part, label):
                    yield name, slot
                    yield name, Slot(f"{slot.name}_step", None, False)


def make_classes(root: Scope, name: str) -> list[Class]:
    """Return the classes of a module tree; each comes after those that it uses, and the root is the last."""
    found: list[tuple[Scope, Item]] = []

    def collect(scope: Scope) -> None:
        for child, item in scope.children:
            collect(child)
            found.append((child, item))

    collect(root)
    maker = _Maker(name)
    levels = _levels([scope for scope, _ in found])
    for level in range(max(levels.values(), default=0) + 1):
        here = [(scope, item) for scope, item in found if levels[id(scope)] == level]
        maker.add_classes([each for each in here if not _is_inline(each[0])])
        maker.add_chains([each for each in here if _is_inline(each[0])])
    items = compress_items(root.items, root.results)
    values = [value for item in items for value in item.values]
    whole = Class(maker.root, "", items, len(root.inputs), root.results)
    whole.expressions = [literal(value) for value in values]
    return [*maker.classes, whole]


def _is_inline(scope: Scope) -> bool:
    """Return whether a scope is an `nn.Sequential` without a class."""
    return scope.is_chain and not scope.block


def _levels(scopes: Sequence[Scope]) -> dict[int, int]:
    """Return a level for each scope, above those of its children. The calls of a block have the same level."""
    levels = {id(scope): 0 for scope in scopes}
    blocks: dict[str, int] = {}
    for _ in range(MAX_DEPTH):
        before = dict(levels)
        for scope in scopes:
            level = max((levels[id(child)] for child, _ in scope.children), default=0) + (not _is_inline(scope))
            levels[id(scope)] = max(level, blocks.get(scope.block, 0))
            if scope.block:
                blocks[scope.block] = levels[id(scope)]
        if levels == before:
            break
    return levels


class _Maker:
    def __init__(self, name: str) -> None:
        self.classes: list[Class] = []
        self._used = {*RESERVED, *class_sources()}
        self.root = self._unused(_camel(name))

    def add_chains(self, scopes: list[tuple[Scope, Item]]) -> None:
        """Set the structures of items that are an `nn.Sequential` without a class."""
        for scope, item in scopes:
            item.structure, item.values = compress_chain([(inner.structure, inner.values) for inner in scope.items])

    def add_classes(self, scopes: list[tuple[Scope, Item]]) -> None:
        """Make the classes of scopes, and set the structures of their items."""
        groups: dict[str, dict[Any, tuple[Class, list[tuple[list[Value], Item]]]]] = {}
        for scope, item in scopes:
            if scope.is_chain:
                chain, values = compress_chain([(inner.structure, inner.values) for inner in scope.items])
                items = [Item((), chain, values, [0], [1])]
            else:
                items = compress_items(scope.items, scope.results)
            values = [value for inner in items for value in inner.values]
            name = _camel(scope.block or _stem(scope.path))
            results = [1] if scope.is_chain else scope.results
            key = (scope.block, *(inner.key for inner in items), tuple(results), len(scope.inputs), scope.names)
            made = Class(name, scope.block, items, len(scope.inputs), results, scope.names)
            groups.setdefault(name, {}).setdefault(key, (made, []))[1].append((values, item))
        for found in groups.values():
            for made, instances in _merged(list(found.values())):
                self._finish(made, instances)

    def _finish(self, made: Class, instances: list[tuple[list[Value], Item]]) -> None:
        made.name = self._unused(made.name)
        slots: list[tuple[str, Slot]] = []
        for item in made.items:
            label = "_".join(item.path)
            if item.optional:
                slots.append(("", Slot(label, "False", False)))
            slots += slots_of(item.structure, label)
        classes = {*class_sources(), *(other.name for other in self.classes)}
        made.parameters, made.expressions = unify(slots, [values for values, _ in instances], classes)
        made.parameters.sort(key=lambda parameter: parameter.default is not None)
        leading = True
        own: list[Slot] = []
        for parameter in made.parameters:
            leading = leading and parameter.name in _LEADING
            own.append(Slot(parameter.name, parameter.default, leading))
        for number, (_, item) in enumerate(instances):
            item.structure = Made(made.name, tuple(own))
            item.values = [parameter.values[number] for parameter in made.parameters]
        self.classes.append(made)

    def _unused(self, name: str) -> str:
        found, number = name, 2
        while found in self._used:
            found, number = f"{name}{number}", number + 1
        self._used.add(found)
        return found


def _camel(name: str) -> str:
    """Return a name as that of a class."""
    words = re.findall(r"[A-Za-z0-9]+", name)
    found = "".join(word[0].upper() + word[1:] for word in words)
    return found if found and not found[0].isdigit() else f"Network{found}"


def _stem(path: Path) -> str:
    """Return the last part of a path that is not a number, without the number at its end."""
    return next((part.rstrip("0123456789_") for part in reversed(path) if part.rstrip("0123456789_")), "Part")


# --- blocks with a layer that some calls leave out ------------------------------------------------

_Instances = list[tuple[list[Value], Item]]


def _merged(found: list[tuple[Class, _Instances]]) -> list[tuple[Class, _Instances]]:
    """Merge classes that differ in modules only which are an identity in the others, such as a projection."""
    merged: list[tuple[Class, _Instances]] = []
    for made, instances in sorted(found, key=lambda each: -len(each[0].items)):
        for whole, others in merged:
            absent = _absent(whole, made)
            if absent is None:
                continue
            others[:] = [(_with_flags(whole, values, absent), item) for values, item in others]
            for values, item in instances:
                others.append((_spread(whole, made, values, absent), item))
            for position in absent:
                whole.items[position].optional = True
            break
        else:
            merged.append((made, instances))
    return merged


def _absent(whole: Class, part: Class) -> list[int] | None:
    """Return the positions of the items of one class that the other lacks, or None if they differ in other ways."""
    if whole.is_chain or part.is_chain or whole.inputs != part.inputs or whole.block != part.block:
        return None
    if whole.names != part.names:
        return None
    numbers = {number: number for number in range(part.inputs)}
    paths = Counter(item.path for item in whole.items)
    absent: list[int] = []
    place = 0
    for position, item in enumerate(whole.items):
        other = part.items[place] if place < len(part.items) else None
        read = [numbers.get(i, -1) for i in item.inputs]
        if other is not None and (item.path, item.structure, read) == (other.path, other.structure, other.inputs):
            numbers.update(zip(item.outputs, other.outputs, strict=True))
            place += 1
        elif item.path and len(item.inputs) == len(item.outputs) == paths[item.path] == 1 and not _is_parameter(item):
            absent.append(position)
            numbers[item.outputs[0]] = read[0]
        else:
            return None
    same = place == len(part.items) and [numbers.get(i) for i in whole.results] == part.results
    return absent if same else None


def _is_parameter(item: Item) -> bool:
    return isinstance(item.structure, Made) and bool(item.structure.sign)


def _with_flags(whole: Class, values: list[Value], absent: list[int]) -> list[Value]:
    """Return the values of an instance with all modules, with a flag before those of each optional module."""
    found: list[Value] = []
    rest = iter(values)
    for position, item in enumerate(whole.items):
        if item.optional:
            found.append(next(rest))
        elif position in absent:
            found.append(True)
        found += [next(rest) for _ in range(_width(item))]
    return found


def _spread(whole: Class, part: Class, values: list[Value], absent: list[int]) -> list[Value]:
    """Return the values of an instance that lacks some modules, with a flag before those of each optional module."""
    found: list[Value] = []
    rest = iter(values)
    for position, item in enumerate(whole.items):
        if position in absent:
            found += [False, *[ABSENT] * _width(item)]
        else:
            found += [True] * item.optional
            found += [next(rest) for _ in range(_width(item))]
    return found


def _width(item: Item) -> int:
    """Return the number of values of an item, without its flag."""
    return sum(1 for _ in slots_of(item.structure, ""))


# --- parameters ----------------------------------------------------------------------------------


def unify(
    slots: Sequence[tuple[str, Slot]], rows: Sequence[Sequence[Value]], taken: Collection[str] = ()
) -> tuple[list[Parameter], list[str]]:
    """Return the parameters of a class, and the code for each value.

    Values that are the same in all instances are literals. Values that are always equal share a parameter, and a value
    that is a multiple or a fraction of a parameter is computed from it.

    Args:
        slots: The label and argument of each value.
        rows: The values of each instance; `ABSENT` equals everything.
        taken: Names that no parameter has.
    """
    parameters: list[Parameter] = []
    columns = list(zip(*rows, strict=True)) if slots else []
    code: list[str] = [""] * len(slots)
    named: list[int] = []
    for position, column in sorted(enumerate(columns), key=lambda each: any(value is ABSENT for value in each[1])):
        known = [value for value in column if value is not ABSENT]
        near = parameters[:_MAX_COMPARED]
        own = slots[position][1].name
        near = [one for one, place in zip(near, named, strict=False) if _related(own, slots[place][1].name)]
        equal = [parameter.name for parameter in near if _is_equal(column, parameter)]
        if len({literal(value) for value in known}) == 1 and (len(known) == len(column) or not equal):
            code[position] = literal(known[0])
        elif derived := equal or [
            found for parameter in near if own in _COUNTS and (found := _multiple(column, parameter))
        ]:
            code[position] = derived[0]
        else:
            filled = [known[0] if value is ABSENT else value for value in column]
            parameter = Parameter(f"<{len(parameters)}>", slots[position][1].default, filled)
            parameters.append(parameter)
            named.append(position)
            code[position] = parameter.name
    names = _names([slots[position] for position in named], taken)
    for parameter, name in zip(parameters, names, strict=True):
        code = [text.replace(parameter.name, name) for text in code]
        parameter.name = name
    return parameters, code


def _related(name: str, other: str) -> bool:
    """Return whether an argument may be computed from another one."""
    return name == other or (name in _COUNTS and other in _COUNTS)


def _is_equal(column: Sequence[Value], parameter: Parameter) -> bool:
    """Return whether values are equal to those of a parameter."""
    pairs = zip(column, parameter.values, strict=True)
    return all(value is ABSENT or literal(value) == literal(own) for value, own in pairs)


def _multiple(column: Sequence[Value], parameter: Parameter) -> str | None:
    """Return the code of values that are a multiple or a fraction of a parameter, or None."""
    pairs = [
        (value, own)
        for value, own in zip(column, parameter.values, strict=True)
        if value is not ABSENT and isinstance(value, int) and isinstance(own, int)
    ]
    if len(pairs) < sum(value is not ABSENT for value in column) or any(min(pair) < 1 for pair in pairs):
        return None
    value, own = pairs[0]
    if (factor := value // own) > 1 and all(value == factor * own for value, own in pairs):
        return f"{factor} * {parameter.name}"
    if (factor := own // value) > 1 and all(own == factor * value for value, own in pairs):
        return f"{parameter.name} // {factor}"
    return None


def _names(slots: Sequence[tuple[str, Slot]], taken: Collection[str]) -> list[str]:
    """Return the names of parameters: that of the argument, with the label of the module where it is ambiguous."""
    times = Counter(slot.name for _, slot in slots)
    used = {"self", "torch", "nn", "Tensor", "range", "super", "layer", *"ijk", *keyword.kwlist, *taken}
    found: list[str] = []
    for label, slot in slots:
        own_name = "channels" if slot.name in ("num_features", "num_channels") else slot.name
        plain = times[slot.name] == 1 or (slot.name in ("in_channels", "in_features") and slot.name not in used)
        name = re.sub(r"\W", "_", own_name if plain else f"{label}_{own_name}".strip("_"), flags=re.ASCII)
        name = f"layer{name}" if not name or name[0].isdigit() else name
        own, number = name, 2
        while own in used:
            own, number = f"{name}{number}", number + 1
        used.add(own)
        found.append(own)
    return found
