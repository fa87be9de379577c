"""Write the classes of a network as Python source."""

from __future__ import annotations

import itertools
import keyword
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from cnnspec import shapes
from cnnspec.backends.source.classes import RESERVED, Class, slots_of
from cnnspec.backends.source.layout import INDENT, Code, Group, call, flat, lay_out, quoted
from cnnspec.backends.source.scopes import Chain, Expression, Item, Loop, Made, Path, Turns
from cnnspec.ir import IMAGE, Graph
from cnnspec.lints.text import MODULE_WORDS

_BODY = INDENT * 2
_LETTERS = "yzabcdefghlmnopqrstuvw"
_LOOP_VARIABLES = "ijk"


def write_class(made: Class, graph: Graph, nodes: Mapping[int, int]) -> list[str]:
    """Return the lines of a class.

    Args:
        made: The class.
        graph: The graph that it is a part of.
        nodes: For the class of the whole network, the node that computes each value.
    """
    return _ClassWriter(made, graph, nodes).lines


class _ClassWriter:
    def __init__(self, made: Class, graph: Graph, nodes: Mapping[int, int]) -> None:
        self._class, self._graph, self._nodes = made, graph, nodes
        self._created: set[Path] = set()
        self._arguments: dict[int, list[str]] = {}
        self._kept: dict[str, str] = {}
        # torch sets `training` on every module, which conflicts with a child of that name.
        self._clashes = {
            item.path[:end] for item in made.items for end, name in enumerate(item.path) if name == "training"
        }
        base = "nn.Sequential" if made.is_chain else "Scope" if () in self._clashes else "nn.Module"
        self.lines = ["", "", f"class {made.name}({base}):"]
        if made.block:
            self.lines += [f'{INDENT}"""The block `{re.sub(r"[^A-Za-z0-9_]", "?", made.block)}`."""', ""]
        elif nodes:
            reads = graph.input_text
            returns = shapes.outputs_text(graph.output_shape, graph.output_shapes)
            self.lines += [f'{INDENT}"""Images {reads} to {re.sub(r"[^]A-Za-z0-9_., [-]", "?", returns)}."""', ""]
        parameters = [
            f"{parameter.name}: {parameter.type}{f' = {parameter.default}' if parameter.default is not None else ''}"
            for parameter in made.parameters
        ]
        self.lines += lay_out(call("__init__", ["self", *parameters]), INDENT, "def ", ":")
        codes = iter(made.expressions)
        if made.is_chain:
            chain = _render(made.items[0].structure, codes)
            assert isinstance(chain, Group)
            self.lines += lay_out(call("super().__init__", chain.items), _BODY)
            return
        self.lines.append(f"{_BODY}super().__init__()")
        for item in made.items:
            self._create(item, codes)
        self.lines.append("")
        _Forward(made, graph, nodes, self._arguments, self.lines).write()

    def _create(self, item: Item, codes: Iterator[str]) -> None:
        """Write the statements that create the modules of an item."""
        if isinstance(item.structure, Loop):
            self._arguments[id(item)] = [self._create_loop(item.structure, codes)]
        elif isinstance(item.structure, Expression):
            self._arguments[id(item)] = [self._keep(next(codes), slot.name) for slot in item.structure.slots]
        elif item.path:
            if not item.optional:
                self._assign(item.path, _render(item.structure, codes), _BODY, _added(item.structure))
                return
            self.lines.append(f"{_BODY}if {next(codes)}:")
            self._assign(item.path, _render(item.structure, codes), _BODY + INDENT)
            self.lines.append(f"{_BODY}else:")
            self._created.discard(item.path)
            self._assign(item.path, "nn.Identity()", _BODY + INDENT)

    def _keep(self, code: str, name: str) -> str:
        """Return code for a value in `forward`: a number, or an attribute that stores it."""
        if code.isdigit():
            return code
        found = self._kept.get(code) or f"self._{name}{len(self._kept) or ''}"
        if code not in self._kept:
            self.lines.append(f"{_BODY}{found} = {code}")
            self._kept[code] = found
        return found

    def _create_loop(self, loop: Loop, codes: Iterator[str]) -> str:
        """Write the loop that creates the modules of a loop, and return the code of its count."""
        count = next(codes)
        kept = self._keep(count, "count")
        turns: list[str] = []
        for (path, start, step), structure, _ in loop.items:
            code, _ = _turn(structure, codes, "i", 1)
            if path and not step:
                self._assign(path, code, _BODY, _added(structure))
            elif path:
                numbers = [start + step * turn for turn in range(int(count))] if count.isdigit() else []
                made = {(*path[:-1], f"{path[-1].removesuffix('{}')}{number}") for number in numbers}
                if made and made <= self._created:  # used again
                    continue
                self._created |= made
                self._containers(path, _BODY)
                add = f"{_access('self', path[:-1])}.{_added(structure)}"
                turns += lay_out(call(add, [_numbered(path[-1], start, step), code]), _BODY + INDENT)
        self.lines += [f"{_BODY}for i in range({count}):", *turns] if turns else []
        return kept

    def _assign(self, path: Path, code: Code, indent: str, add: str = "add_module") -> None:
        if path in self._created:  # used again
            return
        self._created.add(path)
        self._containers(path, indent)
        owner, name = _access("self", path[:-1]), path[-1]
        if _is_attribute(name):
            self.lines += lay_out(code, indent, f"{owner}.{name} = ")
        elif name in MODULE_WORDS or name.startswith("_"):
            children = "_modules" if add == "add_module" else "_parameters"
            self.lines += lay_out(code, indent, f"{owner}.{children}[{quoted(name)}] = ")
        else:
            self.lines += lay_out(call(f"{owner}.{add}", [quoted(name), code]), indent)

    def _containers(self, path: Path, indent: str) -> None:
        """Create the modules that a path goes through."""
        for end in range(1, len(path)):
            if path[:end] not in self._created:
                kind = "Scope" if path[:end] in self._clashes else "nn.Module"
                self._assign(path[:end], f"{kind}()", indent)


def _is_attribute(name: str) -> bool:
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is not None
    return plain and not keyword.iskeyword(name) and name not in MODULE_WORDS


def _added(structure: Any) -> str:
    """Return the method of a module that adds what a structure creates."""
    return "register_parameter" if isinstance(structure, Made) and structure.sign else "add_module"


def _access(owner: str, path: Path, children: str = "_modules") -> str:
    """Return the expression for a module at a path, or for a parameter in `children`."""
    for place, name in enumerate(path):
        if _is_attribute(name):
            owner = f"{owner}.{name}"
        elif name in MODULE_WORDS or name.startswith("_"):
            owner = f"{owner}.{children if place == len(path) - 1 else '_modules'}[{quoted(name)}]"
        else:
            owner = f"getattr({owner}, {quoted(name)})"
    return owner


def _numbered(template: str, start: int, step: int) -> str:
    """Return the f-string of a name in a loop over `i`."""
    prefix = quoted(template.removesuffix("{}").replace("{", "{{").replace("}", "}}"))
    return f"f{prefix[:-1]}{{{_sum(str(start), str(step), 'i')}}}{prefix[-1]}"


# --- creation of modules -------------------------------------------------------------------------


def _render(structure: Any, codes: Iterator[str], depth: int = 0) -> Code:
    """Return the code that creates a module, given the code of each value."""
    if isinstance(structure, Made):
        arguments: list[Code] = []
        for slot in structure.slots:
            code = next(codes)
            if slot.default is None or code != slot.default:
                arguments.append(code if slot.positional else f"{slot.name}={code}")
        return call(structure.function, arguments)
    assert isinstance(structure, Chain)
    return call("nn.Sequential", [_entry(entry, codes, depth) for entry in structure.entries])


def _entry(entry: Any, codes: Iterator[str], depth: int) -> Code:
    if not isinstance(entry, Turns):
        return _render(entry, codes, depth)
    variable = _LOOP_VARIABLES[depth]
    count = next(codes)
    parts, varies = zip(*(_turn(part, codes, variable, depth + 1) for part in entry.entries), strict=True)
    turns = f"for {variable if any(varies) else '_'} in range({count})"
    if len(parts) == 1:
        return Group("*[", (parts[0], turns), "]", " ")
    return Group("*[", ("layer", turns, Group("for layer in (", parts, ")", literal=True)), "]", " ")


def _turn(structure: Any, codes: Iterator[str], variable: str, depth: int) -> tuple[Code, bool]:
    """Return the code of a module in a loop, and whether it depends on the variable."""
    if isinstance(structure, Expression):
        return "", False
    pairs = [(next(codes), next(codes)) for _ in slots_of(structure, "")]
    own = (_sum(start, step, variable) for start, step in pairs)
    return _render(structure, own, depth), any(step != "0" for _, step in pairs)


def _sum(start: str, step: str, variable: str) -> str:
    """Return the code of `start + step * variable`."""
    if step == "0":
        return start
    sign, size = ("-", step[1:]) if step.startswith("-") else ("+", step)
    term = variable if size == "1" else f"({size}) * {variable}" if " " in size else f"{size} * {variable}"
    if start.isdigit() and term == variable and sign == "+":
        return f"{variable} + {start}" if start != "0" else variable
    return term if start == "0" and sign == "+" else f"{start} {sign} {term}"


# --- forward -------------------------------------------------------------------------------------


class _Forward:
    """Writes the `forward` of a class."""

    def __init__(
        self, made: Class, graph: Graph, nodes: Mapping[int, int], arguments: dict[int, list[str]], lines: list[str]
    ) -> None:
        self._class, self._graph, self._nodes, self._lines = made, graph, nodes, lines
        self._arguments = arguments
        self._heads = graph.aux if nodes else ()

    def write(self) -> None:
        made = self._class
        inputs = [*self._graph.arguments] if self._nodes else _inputs(made)
        numbers = {node: number for number, node in self._nodes.items()}
        heads = [numbers[head.output] for head in self._heads]
        results = made.results[: len(made.results) - len(heads)]
        kind = "Tensor" if len(made.results) == 1 else f"tuple[{', '.join(['Tensor'] * len(results))}]"
        if heads:
            kind = "Tensor | tuple[Tensor, tuple[Tensor, ...]]"
        elif self._nodes and self._graph.taps:
            kind = "dict[str, Tensor]"
        arguments = ["self", *(f"{name}: Tensor" for name in inputs)]
        self._lines += lay_out(call("forward", arguments), INDENT, "def ", f" -> {kind}:")
        for other in inputs[1:] if self._nodes else ():
            text = quoted(f"`{inputs[0]}` and `{other}` must have one height and width")
            self._lines += lay_out(call("torch._assert", [f"{inputs[0]}.shape[2:] == {other}.shape[2:]", text]), _BODY)
        variables = dict(enumerate(inputs))
        items = self._ordered()
        taps = bool(self._nodes and self._graph.taps)
        returned = not heads and not taps and results == items[-1].outputs and not isinstance(items[-1].structure, Loop)
        self._statements(items, variables, [*results, *heads], _BODY, returned=returned)
        if returned:
            return
        names = [variables[number] for number in results]
        if heads:
            aux = [variables[number] for number in heads]
            self._lines.append(f"{_BODY}if self.training:")
            pair = Group("(", tuple(aux), ",)" if len(aux) == 1 else ")")
            self._lines += lay_out(f"{names[0]}, {flat(pair)}", _BODY + INDENT, "return ")
            self._lines.append(f"{_BODY}return {names[0]}")
        elif taps:
            pairs = [f"{quoted(path)}: {variables[numbers[i]]}" for path, i in self._graph.taps.items()]
            self._lines += lay_out(Group("{", tuple(pairs), "}", literal=True), _BODY, "return ")
        else:
            self._lines.append(f"{_BODY}return {', '.join(names)}")

    def _ordered(self) -> list[Item]:
        """Return the items in the order of execution: an auxiliary head runs as soon as its inputs exist."""
        items = self._class.items
        made = {number: position for position, item in enumerate(items) for number in item.outputs}

        def place(position: int) -> tuple[int, int]:
            item = items[position]
            if not item.training:
                return position, -1
            found = position
            while items[found].training:  # a head may consist of several items
                earlier = [made[number] for number in items[found].inputs if number in made]
                found = max(earlier, default=-1)
                if found < 0:
                    break
            return found, position

        return [items[position] for position in sorted(range(len(items)), key=place)]

    def _statements(
        self,
        items: Sequence[Item],
        variables: dict[int, str],
        results: Sequence[int],
        indent: str,
        carried: str | None = None,
        returned: bool = False,
    ) -> None:
        """Write statements.

        Args:
            items: The items.
            variables: The names of the values that exist; on return, those of the results.
            results: The values that are needed afterwards.
            indent: The indentation.
            carried: In a loop, the variable of its result.
            returned: Whether the last statement may return its value.
        """
        last_read = {number: place for place, item in enumerate(items) for number in item.inputs}
        last_read.update(dict.fromkeys(results, len(items)))
        joins = (item for item in items if isinstance(item.structure, Expression) and len(item.inputs) > 1)
        joined = {number for item in joins for number in item.inputs}
        branch = False
        for place, item in enumerate(items):
            if item.training and not branch:
                self._lines.append(f"{indent}if self.training:")
            branch = item.training
            read = [variables[number] for number in item.inputs]
            dead = [number for number in dict.fromkeys(item.inputs) if last_read[number] == place]
            if isinstance(item.structure, Loop):
                self._loop(item, variables, dead, indent)
                continue
            if not branch:  # in evaluation, values that a head reads are still there
                for number in dead:
                    del variables[number]
            following = items[place + 1] if place + 1 < len(items) else None
            names = [carried] if carried is not None and following is None else []
            names = names or _targets(item, joined, variables, [read[item.inputs.index(i)] for i in dead])
            variables.update(zip(item.outputs, names, strict=True))
            code = _value(item, read, self._arguments.get(id(item), ()), carried is not None)
            target = "return " if returned and following is None else f"{', '.join(names)} = "
            self._lines += lay_out(code, indent + INDENT * branch, target, comment=self._shape(item))

    def _loop(self, item: Item, variables: dict[int, str], dead: list[int], indent: str) -> None:
        """Write a loop. The value that enters it and its result are in the same variable."""
        entering, *fixed = item.inputs
        name = variables[entering]
        if entering in fixed or entering not in dead:
            name = _unused(variables.values())
            self._lines.append(f"{indent}{name} = {variables[entering]}")
        inner = {-1 - number: text for number, text in variables.items()}  # nothing reads or overwrites these
        inner |= {0: name, **{1 + place: variables[number] for place, number in enumerate(fixed)}}
        if name == variables[entering]:
            del inner[-1 - entering]
        turns = [
            Item(path, structure, [start, step], list(read), [1 + len(fixed) + place])
            for place, ((path, start, step), structure, read) in enumerate(item.structure.items)
        ]
        index = "i" if any(turn.values[1] for turn in turns) else "_"
        self._lines.append(f"{indent}for {index} in range({self._arguments[id(item)][0]}):")
        results = [*range(1, 1 + len(fixed)), turns[-1].outputs[0]]
        self._statements(turns, inner, results, indent + INDENT, name)
        for number in dead:
            del variables[number]
        variables[item.outputs[0]] = name

    def _shape(self, item: Item) -> str:
        """Return the output shape of an item of the network, if it differs from that of its input."""
        if not self._nodes or len(item.outputs) != 1 or item.outputs[0] not in self._nodes:
            return ""
        before, after = self._nodes[item.inputs[0]], self._nodes[item.outputs[0]]
        shape = self._graph.nodes[after].shape
        entering = self._graph.input_shape if before == IMAGE else self._graph.nodes[before].shape
        return shapes.text(shape) if shape != entering else ""


def _value(item: Item, read: Sequence[str], arguments: Sequence[str], in_loop: bool) -> Code:
    """Return the code of the value of an item."""
    structure = item.structure
    if isinstance(structure, Expression):
        if not structure.separator:
            names = [slot.name for slot in structure.slots]
            closing = structure.closing.format(**dict(zip(names, arguments, strict=True)))
            return f"{structure.opening}{read[0]}{closing}"
        if structure.opening == "(":
            return Group("(", tuple(read), ")", structure.separator, bare=True)
        head, bracket = structure.opening[:-1], structure.opening[-1]
        inner = Group(bracket, tuple(read), structure.closing[0], structure.separator, literal=True)
        return Group(head, (inner, *structure.closing[1:-1].strip(", ").split(", ")), ")")
    parameter = isinstance(structure, Made) and bool(structure.sign)
    place = _access("self", item.path, "_parameters" if parameter else "_modules")
    if in_loop and item.values[1]:
        start, step = item.values
        owner = _access("self", item.path[:-1])
        place = f"getattr({owner}, {_numbered(item.path[-1], int(start), int(step))})"  # type: ignore[arg-type]
    if parameter:
        return f"{read[0]} {structure.sign} {place}{structure.view}"
    return call(place, read)


def _inputs(made: Class) -> list[str]:
    """Return the names of the inputs of a class: `x`, those of tensor parameters, and letters for others."""
    usable = [name if _is_variable(name) else "" for name in made.names or ("",) * made.inputs]
    free = (name for name in itertools.chain("x", _LETTERS, (f"x{n}" for n in itertools.count())) if name not in usable)
    return [name or next(free) for name in usable]


def _is_variable(name: str) -> bool:
    """Return whether a name can be that of a local variable."""
    return _is_attribute(name) and name not in RESERVED | {"self", *_LOOP_VARIABLES}


def _targets(item: Item, joined: Collection[int], variables: Mapping[int, str], free: Sequence[str]) -> list[str]:
    """Return names for the outputs of an item.

    Args:
        item: The item.
        joined: The values that are joined with others.
        variables: The names that are taken.
        free: The variables of inputs that nothing else reads.
    """
    taken = set(variables.values())
    label = item.path[-1] if item.path else ""
    usable = _is_variable(label)
    continued = [name for name in free if name != "x"] if item.path else []
    names: list[str] = []
    for number in item.outputs:
        wanted = continued if len(item.outputs) == 1 else []
        wanted = wanted or ([label] if usable and (number in joined or len(item.outputs) > 1) else [])
        wanted = [*wanted, "x", *free, *([label] if usable and item.training else [])]
        names.append(next((name for name in wanted if name not in taken), "") or _unused(taken))
        taken.add(names[-1])
    return names


def _unused(taken: Collection[str]) -> str:
    numbered = (f"x{number}" for number in itertools.count(1))
    return next(name for name in itertools.chain(_LETTERS, numbered) if name not in taken)
