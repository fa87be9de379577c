"""The names that a file defines, and those that an expression in it can use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from cnnspec import ir
from cnnspec.ops import OPS
from cnnspec.schema import OpName, Type
from cnnspec.semantics.loader import standard_blocks
from cnnspec.syntax import ast

_OPERATOR = Type("op")
FILE_VALUE = Type("int")
"""The type of a constant of the file that is not an operator; compare it with `is`."""
REPEAT_INDEX = Type("int")
"""The type of the index of a `repeat`; compare it with `is`."""

FoundBlock = tuple["FileScope", ast.Block]


@dataclass(eq=False)
class FileScope:
    """The names of one file.

    Attributes:
        constants: The values of `param`, `classes`, and each top-level `let` that does not depend on the image; changed
            by `define` and `remove`.
        blocks: The blocks that the file defines or imports with `use`, each with the scope of its definition.
        defaults: The arguments set by `default`, by callee.
        image_dependent: Each top-level `let` that depends on the image.
        unavailable: Blocks that a failed `use` names; calls of them are not checked.
        find_standard: Finds a standard block.
    """

    file: ast.File
    find_standard: Callable[[str], FoundBlock | None]
    constants: dict[str, Any] = field(default_factory=dict[str, Any])
    blocks: dict[str, FoundBlock] = field(default_factory=dict[str, FoundBlock])
    defaults: dict[str, dict[str, ir.Expr]] = field(default_factory=dict[str, dict[str, ir.Expr]])
    image_dependent: set[str] = field(default_factory=set[str])
    unavailable: set[str] = field(default_factory=set[str])
    _types: dict[str, Type | None] = field(default_factory=dict[str, "Type | None"])

    @cached_property
    def labels(self) -> frozenset[str]:
        """Every label of the file, at any depth, and the names of its images."""
        flows = (part for part in self.file.walk() if isinstance(part, ast.Flow))
        images = (part.name for part in self.file.statements if isinstance(part, ast.Input) and part.name)
        return frozenset([*images, *(flow.label.name for flow in flows if flow.label)])

    def find_block(self, name: str) -> FoundBlock | None:
        """Find the block of this name that the file can call."""
        return self.blocks.get(name) or self.find_standard(name)

    def block_names(self) -> list[str]:
        """List every block that the file can call."""
        return [*self.blocks, *standard_blocks()]

    def define(self, name: str, value: Any) -> None:
        """Define a constant."""
        self.constants[name] = value
        self._types[name] = _OPERATOR if type(value) is OpName else FILE_VALUE

    def remove(self, name: str) -> None:
        """Remove a constant, if it is defined."""
        self.constants.pop(name, None)
        self._types.pop(name, None)

    def local(self) -> LocalScope:
        """Return a scope whose variables are the constants, with the type of operators marked."""
        return LocalScope(self, self._types)

    def top_level(self) -> LocalScope:
        """Return the scope of a top-level expression, which can also name values that depend on the image."""
        return LocalScope(self, {**self._types, **dict.fromkeys(self.image_dependent)})


@dataclass(frozen=True, slots=True)
class LocalScope:
    """The names that an expression can use: variables, with their type where it is known, and those of the file.

    Attributes:
        in_join: Whether the pipelines here are branches of a join, or all of such a branch.
    """

    file: FileScope
    variables: Mapping[str, Type | None]
    in_join: bool = False

    def with_variable(self, name: str, type_: Type | None = None) -> LocalScope:
        """Return this scope with one more variable."""
        return LocalScope(self.file, {**self.variables, name: type_}, self.in_join)

    def is_tensor(self, word: str) -> bool:
        """Return whether a word is a tensor parameter of the enclosing block, which is not a value."""
        variable = self.variables.get(word)
        return variable is not None and variable.kind == "tensor"

    def meaning(self, word: str, type_: Type | None) -> Literal["name", "word", "op"] | None:
        """Return the kind of expression that a bare word is where a value of a type is expected, or None."""
        if word in self.variables and not self.is_tensor(word):
            return "name"
        if type_ is not None and word in type_.words:
            return "word"
        if word in OPS and (type_ is None or type_.kind == "op"):
            return "op"
        return None
