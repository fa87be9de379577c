"""Write the forward pass of a graph as Python source."""

from __future__ import annotations

import itertools
import keyword
import re

from cnnspec import shapes
from cnnspec.analysis.liveness import schedule
from cnnspec.backends.torch.layers import BARE, EXPRESSIONS, Scope
from cnnspec.ir import IMAGE, Graph, Node

_RESERVED = {*dir(Scope()), "graph", "code", "_repr_html_"}
"""Attributes of every module: a child of such a name is reached by its key."""
_BODY, _IN_TRAINING = " " * 4, " " * 8


def write_forward(graph: Graph) -> str:
    """Return the Python source of the forward pass.

    There is one line per node. A value is deleted as soon as its last reader has run.

    Raises:
        ValueError: A path has a part that is neither a label nor a number.
    """
    writer = _ForwardWriter(graph)
    for position, index in enumerate(writer.order):
        writer.write_node(position, index)
    writer.write_return()
    return "\n".join(writer.lines) + "\n"


class _ForwardWriter:
    """The state of `write_forward`: the lines so far and the variable of each live value.

    Attributes:
        order: Indices of the nodes in execution order.
        lines: The source so far.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = schedule(graph)
        self._heads = {head.output: f"aux{number}" for number, head in enumerate(graph.aux, 1)}
        self._last_use = {i: position for position, index in enumerate(self.order) for i in graph.nodes[index].inputs}
        self._last_use.update(dict.fromkeys((*graph.results, *self._heads), len(self.order)))
        result = "Tensor | Outputs" if self._heads else "dict[str, Tensor]" if graph.taps else "Tensor"
        first, *others = graph.arguments
        given = ", ".join(f"{name}: Tensor" for name in graph.arguments)
        read = ", ".join(map(shapes.text, graph.images.values())) or shapes.text(graph.input_shape)
        self.lines = [f"def forward(self, {given}) -> {result}:  # {read}"]
        for other in others:
            same = f'{first}.shape[2:] == {other}.shape[2:], "`{first}` and `{other}` must have one height and width"'
            self.lines.append(f"{_BODY}torch._assert({same})")
        self._variables = dict(enumerate(graph.arguments)) if others else {IMAGE: first}
        self._section: str | None = None
        self._in_training = False
        self._delete_after_branch: list[int] = []

    @property
    def _indent(self) -> str:
        return _IN_TRAINING if self._in_training else _BODY

    def write_node(self, position: int, index: int) -> None:
        """Write the assignment of one node, and the deletion of the values it is the last to read."""
        node = self.graph.nodes[index]
        if index < len(self.graph.images):  # an argument
            return
        self._enter(node)
        inputs = [self._variables[i] for i in node.inputs]
        if node.op.owns_module:
            expression = f"{_access(node.path)}({', '.join(inputs)})"
        elif node.weights:
            (shape,) = node.weights.values()
            spread = ".view(-1, 1, 1)" if len(shape) == 1 and len(node.shape) == 3 else ""
            expression = f"{inputs[0]} {BARE[node.op.name]} {_access(node.path)}{spread}"
        else:
            expression = EXPRESSIONS[node.op.name](node.op, inputs)
        dead = [self._variables.pop(i) for i in self._dead_after(node, position)]
        name = self._heads.get(index) or self._unused_name()
        reshaped = node.shape != self.graph.input_shapes(node)[0]
        comment = f"  # {shapes.text(node.shape)}" if reshaped else ""
        self.lines.append(f"{self._indent}{name} = {expression}{comment}")
        self._delete([other for other in dead if other != name])
        if index in self._last_use:
            self._variables[index] = name

    def write_return(self) -> None:
        """Write the return statement, with the auxiliary outputs in training or a dict of the taps."""
        graph, variables = self.graph, self._variables
        if graph.aux:
            aux = "".join(f"{variables[head.output]}, " for head in graph.aux).rstrip()
            output = variables[graph.output]
            self.lines += ["", f"{_BODY}if self.training:", f"{_IN_TRAINING}return Outputs({output}, ({aux}))"]
        if graph.taps:
            features = ", ".join(f'"{path}": {variables[index]}' for path, index in graph.taps.items())
            self.lines += ["", f"{_BODY}return {{{features}}}"]
        else:
            self.lines.append(f"{_BODY}return {variables[graph.output]}")

    def _enter(self, node: Node) -> None:
        """Open or close the branch for training, and write a comment where a new section begins."""
        if node.aux is None and self._in_training:
            self._in_training = False
            self._delete([self._variables.pop(i) for i in self._delete_after_branch])
            self._delete_after_branch = []
        section = _section(self.graph, node)
        if section != self._section:
            self.lines += ["", f"{self._indent}# {section}"] if section else [""]
        self._section = section
        if node.aux is not None and not self._in_training:
            self.lines.append(f"{_BODY}if self.training:")
            self._in_training = True

    def _dead_after(self, node: Node, position: int) -> list[int]:
        """Return the values that nothing reads after a node."""
        dead = sorted({i for i in node.inputs if self._last_use[i] == position})
        if node.aux is None:
            return dead
        # Values of the main path are deleted after the `if`, so that evaluation deletes them, too.
        main_path = [i for i in dead if i == IMAGE or self.graph.nodes[i].aux is None]
        self._delete_after_branch += main_path
        return [i for i in dead if i not in self._delete_after_branch]

    def _delete(self, names: list[str]) -> None:
        if names:
            self.lines.append(f"{self._indent}del {', '.join(names)}")

    def _unused_name(self) -> str:
        """Return `x`, another letter, or `x1`, `x2`, ..., whichever is free first."""
        numbered = (f"x{number}" for number in itertools.count(1))
        names = itertools.chain("xabcdefghijklmnopqrstuvwyz", numbered)
        return next(name for name in names if name not in self._variables.values())


def _section(graph: Graph, node: Node) -> str:
    """Return the section a node belongs to: its outermost block call, or else the first part of its path."""
    parts = node.place.split(".") if node.place else []
    depth = len(parts) - node.has_state
    for end in range(1, depth + 1):
        path = ".".join(parts[:end])
        if block := graph.scopes.get(re.sub(r"#[0-9]+", "", path)):
            return f"{path}: {block}"
    return parts[0] if depth > 0 else ""


def _access(path: str) -> str:
    """Return the expression for the module at a path: `self.stage1[0].net[1]`."""
    text = "self"
    for part in path.split("."):
        if re.fullmatch(r"[A-Za-z0-9_+/-]+", part) is None:
            raise ValueError(f"not a name in a path: {part!r}")
        if part == "0" or (part.isdigit() and part[0] != "0"):
            text += f"[{part}]"
        elif not part.isidentifier() or part.startswith("__") or part in _RESERVED or keyword.iskeyword(part):
            text += f'["{part}"]'
        else:
            text += f".{part}"
    return text
