"""The module tree of a graph: scopes, whose items are the statements of a `forward`.

Code is a structure, which can be compared, and the values in it. Scopes of one structure can share a class, whose
parameters are the values that differ. Repetitions become loops here, before classes are formed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, groupby
from typing import Any, NamedTuple

from cnnspec.backends.source.layout import literal
from cnnspec.backends.source.rows import BARE, DEFAULTS, EXPRESSIONS, MODULES, Value
from cnnspec.ir import IMAGE, Graph

Path = tuple[str, ...]
_MAX_PERIOD, _LEAST_TURNS = 12, 3


class Slot(NamedTuple):
    """An argument in a structure: its name, its default (None without one), and whether it is positional."""

    name: str
    default: str | None
    positional: bool


class Made(NamedTuple):
    """The structure of a call that creates a module.

    Attributes:
        function: The class.
        slots: The arguments.
        sign: For a parameter instead of a module: the text between an input and the parameter.
        view: For a parameter: the text after it.
    """

    function: str
    slots: tuple[Slot, ...]
    sign: str = ""
    view: str = ""


class Chain(NamedTuple):
    """The structure of an `nn.Sequential`."""

    entries: tuple[Any, ...]


class Turns(NamedTuple):
    """A repetition in a `Chain`. Its values are the count, and a start and a step for each value of one turn."""

    entries: tuple[Any, ...]


class Expression(NamedTuple):
    """The structure of an expression: its texts, its number of inputs, and its arguments."""

    opening: str
    separator: str
    closing: str
    inputs: int
    slots: tuple[Slot, ...]


class Loop(NamedTuple):
    """A repetition with names. Value 0 is the result of the turn before; the paths are templates with `{}`."""

    items: tuple[Any, ...]


@dataclass
class Item:
    """A statement of `forward`.

    Attributes:
        path: The path of its module within the scope; nothing for an expression or a loop.
        structure: The structure of the call that creates its module, or an `Expression` or a `Loop`.
        values: The values of the structure; None for values of a module that is an identity.
        inputs: The values that it reads, by number.
        outputs: The values that it computes.
        free: The name that its module may have instead, because it has no state; an empty string otherwise.
        training: Whether it is left out in evaluation.
        optional: Whether the module is an identity in some instances of a class; then the first value tells.
        first: The item of the first use, if the module is used again.
    """

    path: Path
    structure: Any
    values: list[Value]
    inputs: list[int]
    outputs: list[int]
    free: str = ""
    training: bool = False
    optional: bool = False
    first: Item | None = None

    @property
    def key(self) -> Any:
        return self.path, self.structure, tuple(self.inputs), tuple(self.outputs), self.training, self.optional


@dataclass
class Scope:
    """A level of the module tree. Its values are numbered: first the inputs, then the outputs of the items.

    Attributes:
        path: Its path in the network.
        block: The block that is called, or an empty string.
        inputs: The nodes outside that it reads, first that of a block, then those of its tensor parameters.
        names: The tensor parameter of each input; an empty string for none.
        outputs: The nodes inside that others read.
        items: Its statements.
        children: The scopes in it, with their items.
        numbers: The number of each node.
        modules: The first item of each module.
    """

    path: Path
    block: str
    inputs: list[int]
    outputs: list[int]
    names: tuple[str, ...] = ()
    items: list[Item] = field(default_factory=list[Item])
    children: list[tuple[Scope, Item]] = field(default_factory=list[Any])
    numbers: dict[int, int] = field(default_factory=dict[int, int])
    modules: dict[Path, Item] = field(default_factory=dict[Path, Item])

    @property
    def results(self) -> list[int]:
        return [self.numbers[node] for node in self.outputs]

    @property
    def is_chain(self) -> bool:
        """Whether it is a sequence of modules with the names `0`, `1`, ..."""
        before = 0
        for position, item in enumerate(self.items):
            if item.path != (str(position),) or item.inputs != [before] or len(item.outputs) != 1:
                return False
            if isinstance(item.structure, Made) and item.structure.sign:
                return False
            before = item.outputs[0]
        return self.results == [before] and len(self.inputs) == 1


def make_scopes(graph: Graph, inplace: set[int]) -> Scope:
    """Return the root of the module tree of a graph.

    Args:
        graph: The graph.
        inplace: The nodes that work in place.
    """
    return _Builder(graph, inplace).root


class _Builder:
    def __init__(self, graph: Graph, inplace: set[int]) -> None:
        self._graph, self._inplace = graph, inplace
        self._paths: list[Path] = [tuple(node.path.split(".")) if node.path else () for node in graph.nodes]
        self._owners = {path: i for i, path in reversed([*enumerate(self._paths)]) if graph.nodes[i].has_state}
        self._last_read: dict[int, int] = {}
        for index, node in enumerate(graph.nodes):
            self._last_read.update(dict.fromkeys(node.inputs, index))
        self._last_read.update(dict.fromkeys(graph.training_results, len(graph.nodes)))
        whole = self._whole_modules()
        self._places: list[Path] = [
            tuple(node.place.split(".")) if node.use and node.use.module in whole else path
            for node, path in zip(graph.nodes, self._paths, strict=True)
        ]
        self._runs = Counter(
            path[:end]
            for before, path in zip([(), *self._places], self._places, strict=False)
            for end in range(1, len(path) + 1)
            if path[:end] != before[:end]
        )
        images = [*range(len(graph.images))]
        nodes = [*range(len(images), len(graph.nodes))]
        self.root = self._scope((), nodes, images or [IMAGE], [*graph.training_results])

    def _whole_modules(self) -> set[str]:
        """Return the modules whose uses all have the same nodes and outputs, so that each use is one call."""
        uses: dict[str, dict[int, list[int]]] = {}
        for node in self._graph.nodes:
            if node.use is not None:
                uses[node.use.module] = {}
        if not uses:
            return set()
        for index, node in enumerate(self._graph.nodes):
            if node.use is not None:
                uses[node.use.module].setdefault(node.use.number, []).append(index)
            for end in range(1, len(parts := node.place.split(".")) + 1):
                if (module := ".".join(parts[:end])) in uses:  # the first use, with what it uses again itself
                    uses[module].setdefault(1, []).append(index)

        def form(nodes: list[int]) -> list[tuple[str, bool]]:
            return [(self._graph.nodes[i].path, self._last_read.get(i, i) > nodes[-1]) for i in nodes]

        found = ((module, [*map(form, parts.values())]) for module, parts in uses.items())
        return {module for module, forms in found if all(one == forms[0] for one in forms)}

    def _scope(self, path: Path, nodes: list[int], inputs: list[int], outputs: list[int]) -> Scope:
        """Build the scope of consecutive nodes."""
        tensors = self._tensors(path)
        names = tuple(tensors.get(node, "") for node in inputs)
        scope = Scope(path, self._graph.scopes.get(".".join(path), ""), inputs, outputs, names)
        scope.numbers = {node: number for number, node in enumerate(inputs)}
        for own, part in self._parts(path, nodes):
            self._add(scope, own, part)
        if not scope.is_chain:
            _name_stateless(scope.items)
        return scope

    def _tensors(self, path: Path) -> dict[int, str]:
        """Return the nodes that a call of a block gets in addition to its input, by their parameter."""
        return {node: name for name, node in reversed(self._graph.tensors.get(".".join(path), {}).items())}

    def _parts(self, base: Path, nodes: Sequence[int]) -> Iterator[tuple[Path, list[int]]]:
        """Divide nodes into those of each child. A child whose nodes are not consecutive is divided itself."""

        def child(index: int) -> str | None:
            own = self._places[index]
            return own[len(base)] if len(own) > len(base) else None

        runs = [(name, list(part)) for name, part in groupby(nodes, child)]
        for name, part in runs:
            if name is None:
                yield from (((base if self._graph.nodes[i].has_state else ()), [i]) for i in part)
            elif self._runs[*base, name] > 1 or (len(part) > 1 and _plain((*base, name)) in self._owners):
                yield from self._parts((*base, name), part)
            elif any(self._graph.nodes[i].has_state for i in part):
                yield (*base, name), part
            else:
                yield from (((), [i]) for i in part)

    def _add(self, scope: Scope, path: Path, nodes: list[int]) -> None:
        graph, first, last = self._graph, nodes[0], nodes[-1]
        node, again = graph.nodes[first], path != _plain(path)
        path = _plain(path)
        own = path[len(scope.path) :]
        training = node.aux is not None and not scope.path
        single = not path or (self._paths[first] == path and node.has_state)
        if single:
            inputs, outputs = list(node.inputs), [first]
            structure, values = self._expression(first) if not path else self._module(self._owners[path])
            child = None
        else:
            outside = (i for index in nodes for i in graph.nodes[index].inputs if i < first)
            order = [*self._tensors(path)][::-1]
            inputs = sorted(dict.fromkeys(outside), key=lambda i: order.index(i) if i in order else -1)
            outputs = [i for i in nodes if self._last_read.get(i, i) > last]
            child = None if again else self._scope(path, nodes, inputs, outputs)
            structure, values = None, list[Value]()
        numbers = scope.numbers
        read = [numbers[i] for i in inputs]
        for output in outputs:
            numbers[output] = len(numbers)
        stateless = single and own and own[-1].isdigit() and not node.weights
        free = node.op.name if stateless and not node.op.buffers(graph.input_shapes(node)[0]) else ""
        item = Item(own, structure, values, read, [numbers[i] for i in outputs], free, training)
        if own:
            item.first = scope.modules.setdefault(own, item)
        scope.items.append(item)
        if child is not None:
            scope.children.append((child, item))

    def _module(self, index: int) -> tuple[Made, list[Value]]:
        node = self._graph.nodes[index]
        if not node.op.owns_module:
            (shape,) = node.weights.values()
            view = ".view(-1, 1, 1)" if len(shape) == 1 and len(node.shape) == 3 else ""
            slots = (Slot("shape", None, True), Slot("initial", None, True))
            return Made("Learned", slots, BARE[node.op.name], view), [shape, getattr(node.op, "init", 0.0)]
        function, arguments = MODULES[node.op.name](node.op, self._graph.input_shapes(node)[0])
        if index in self._inplace:
            arguments = {**arguments, "inplace": True}
        names = ((name, f"{function}.{name}" if f"{function}.{name}" in DEFAULTS else name) for name in arguments)
        slots = (Slot(n, literal(DEFAULTS[key]) if key in DEFAULTS else None, key not in DEFAULTS) for n, key in names)
        return Made(function, tuple(slots)), [*arguments.values()]

    def _expression(self, index: int) -> tuple[Expression, list[Value]]:
        node = self._graph.nodes[index]
        opening, separator, closing, arguments = EXPRESSIONS[node.op.name](node.op)
        slots = tuple(Slot(name, None, False) for name in arguments)
        return Expression(opening, separator, closing, len(node.inputs), slots), [*arguments.values()]


def _plain(path: Path) -> Path:
    """Return a path without the numbers of uses."""
    return tuple(name.partition("#")[0] for name in path)


def _name_stateless(items: Sequence[Item]) -> None:
    """Give modules without state the names of their operators; equal ones are one module."""
    used = {item.path[0] for item in items if item.path and not item.free}
    names: dict[Any, str] = {}
    for item in items:
        if not item.free:
            continue
        key = item.structure, tuple(map(literal, item.values))
        if key not in names:
            numbered = (f"{item.free}{number}" for number in count(2))
            names[key] = next(name for name in chain([item.free], numbered) if name not in used)
            used.add(names[key])
        item.path = (names[key],)


# --- repetitions ---------------------------------------------------------------------------------

Entry = tuple[Any, list[Value]]


def _progression(turns: Sequence[Sequence[Value]]) -> tuple[list[Value], int]:
    """Return a start and a step for each value, and the number of turns whose values follow from them."""
    found: list[Value] = []
    count = len(turns)
    for column in zip(*turns, strict=True):
        first, second = column[0], column[1]
        step = second - first if type(first) is int and type(second) is int else 0
        texts = ((literal(value), literal(first + step * turn if step else first)) for turn, value in enumerate(column))  # type: ignore[operator]
        count = min(count, next((turn for turn, (text, wanted) in enumerate(texts) if text != wanted), count))
        found += [first, step]
    return found, count


def _repetitions(keys: Sequence[Any], start: int) -> list[tuple[int, int]]:
    """Return possible periods and numbers of turns of a repetition from a position on, the longest first."""
    found: list[tuple[int, int]] = []
    for period in range(1, min(_MAX_PERIOD, (len(keys) - start) // _LEAST_TURNS) + 1):
        same = 0
        while start + same + period < len(keys) and keys[start + same] == keys[start + same + period]:
            same += 1
        if (turns := same // period + 1) >= _LEAST_TURNS:
            found.append((period, turns))
    return sorted(found, key=lambda each: (-each[0] * each[1], each[0]))


def compress_chain(entries: list[Entry]) -> Entry:
    """Return an `nn.Sequential` of modules, with repetitions as loops."""
    keys = [structure for structure, _ in entries]
    made: list[Any] = []
    values: list[Value] = []
    position = 0
    while position < len(entries):
        step, structure, own = 1, *entries[position]
        for period, most in _repetitions(keys, position):
            turns = [
                [value for _, values in entries[at : at + period] for value in values]
                for at in range(position, position + period * most, period)
            ]
            found, count = _progression(turns)
            if count >= _LEAST_TURNS:
                step, structure, own = count * period, Turns(tuple(keys[position : position + period])), [count, *found]
                break
        made.append(structure)
        values += own
        position += step
    return Chain(tuple(made)), values


def compress_items(items: list[Item], results: Sequence[int]) -> list[Item]:
    """Return the items of a scope, with repetitions as loops.

    Args:
        items: The items, whose modules have structures.
        results: The values that are needed after the last item.
    """
    for item in items:
        if item.first is not None:
            item.structure, item.values = item.first.structure, item.first.values
    keys = [(_template(item.path)[0], item.structure, len(item.inputs), item.training) for item in items]
    last_read: dict[int, int] = {}
    for position, item in enumerate(items):
        last_read.update(dict.fromkeys(item.inputs, position))
    last_read.update(dict.fromkeys(results, len(items)))
    found: list[Item] = []
    position = 0
    while position < len(items):
        loop, step = items[position], 1
        for period, turns in _repetitions(keys, position):
            made = _Turns(items, position, period, turns).loop(last_read)
            if made is not None:
                loop, step = made, period * int(made.values[0])  # type: ignore[arg-type]
                break
        found.append(loop)
        position += step
    return found


class _Turns:
    """Items with the same structures that may be a loop."""

    def __init__(self, items: Sequence[Item], start: int, period: int, count: int) -> None:
        self._start, self._period = start, period
        self._turns = [items[at : at + period] for at in range(start, start + period * count, period)]

    def loop(self, last_read: dict[int, int]) -> Item | None:
        """Return the loop, over as many turns as have one, or None."""
        if any(len(item.outputs) != 1 or item.training for turn in self._turns for item in turn):
            return None
        values, turns = _progression([[value for item in turn for value in item.values] for turn in self._turns])
        names = [_pattern([turn[place].path for turn in self._turns]) for place in range(self._period)]
        turns = min([turns, *(name[3] for name in names)])
        entering, reads, turns = self._reads(turns)
        while turns >= _LEAST_TURNS and not self._closed(turns, last_read):
            turns -= 1
        if turns < _LEAST_TURNS or any(
            isinstance(item.structure, Expression) and item.values for item in self._turns[0]
        ):
            return None
        fixed = [read for read in dict.fromkeys(read for item in reads for read in item) if read >= 0]
        numbers = {_CARRIED: 0, **{read: 1 + place for place, read in enumerate(fixed)}}
        numbers |= {_OWN - place: 1 + len(fixed) + place for place in range(self._period)}
        inner = [
            (name[:3], item.structure, tuple(numbers[read] for read in own))
            for name, item, own in zip(names, self._turns[0], reads, strict=True)
        ]
        return Item((), Loop(tuple(inner)), [turns, *values], [entering, *fixed], self._turns[turns - 1][-1].outputs)

    def _reads(self, count: int) -> tuple[int, list[list[int]], int]:
        """Return the value that enters the first turn, what each item of a turn reads, and the number of such turns."""
        reads: list[list[list[int]]] = []
        for number, turn in enumerate(self._turns[:count]):
            places = {item.outputs[0]: _OWN - place for place, item in enumerate(turn)}
            if number:
                places[self._turns[number - 1][-1].outputs[0]] = _CARRIED
            reads.append([[places.get(i, i) for i in item.inputs] for item in turn])
        if len(reads) < _LEAST_TURNS:
            return 0, [], 0
        pairs = [pair for own in zip(reads[0], reads[1], strict=True) for pair in zip(*own, strict=True)]
        entering = {first for first, second in pairs if second == _CARRIED}
        agree = all(first == second or second == _CARRIED for first, second in pairs)
        inside = {item.outputs[0] for turn in self._turns for item in turn}
        if len(entering) != 1 or not agree or inside & {i for _, i in pairs} or min(entering) < 0:
            return 0, [], 0
        count = next((number for number, own in enumerate(reads) if number and own != reads[1]), len(reads))
        return entering.pop(), reads[1], count

    def _closed(self, count: int, last_read: dict[int, int]) -> bool:
        """Return whether nothing else reads what is computed in a turn, except for the result of the last one."""
        for number, turn in enumerate(self._turns[:count]):
            end = self._start + self._period * (number + 1)
            if any(last_read.get(item.outputs[0], 0) >= end for item in turn[:-1]):
                return False
            if number + 1 < count and last_read.get(turn[-1].outputs[0], 0) >= end + self._period:
                return False
        return True


_CARRIED, _OWN = -1, -2
"""What an item of a turn reads: the result of the turn before, or that of an item of the turn: -2, -3, ..."""


def _template(path: Path) -> tuple[str, int]:
    """Return a path with `{}` for its last number, and the number."""
    text = ".".join(path)
    if (match := re.fullmatch(r"(.*?)(0|[1-9][0-9]{0,8})", text)) is None:
        return text, 0
    return f"{match[1]}{{}}", int(match[2])


def _pattern(paths: Sequence[Path]) -> tuple[Path, int, int, int]:
    """Return a template for the paths of a loop, the first number, the step, and the number of paths that follow it."""
    if not paths[0]:
        return (), 0, 0, len(paths)
    if paths[0] == paths[1]:  # a shared module
        return paths[0], 0, 0, next((turn for turn, path in enumerate(paths) if path != paths[0]), len(paths))
    templates = [_template(path) for path in paths]
    text, start = templates[0]
    step = templates[1][1] - start
    if "{}" not in text:
        return (), 0, 0, 0
    follows = (found == (text, start + step * turn) for turn, found in enumerate(templates))
    return (
        tuple(text.split(".")),
        start,
        step,
        next((turn for turn, same in enumerate(follows) if not same), len(paths)),
    )
