"""What a file defines: its constants, its blocks, its defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cnnspec import ir
from cnnspec.schema import OpName, Type
from cnnspec.semantics.loader import standard_blocks
from cnnspec.syntax import ast

_OPERATOR, _OTHER = Type("op"), Type("int")

FoundBlock = tuple["FileScope", ast.Block]


@dataclass(eq=False)
class FileScope:
    """The names of one file.

    Attributes:
        constants: `param`, `classes`, and every `let` of the top that does not depend on the image.
        blocks: Blocks defined here or taken with `use`, each with the scope it was defined in.
        defaults: Arguments that `default` sets, by callee.
        pending: Each `let` of the top that depends on the image.
        lost: Blocks that are named by a `use` which failed; calls of them are not judged.
        find_standard: Looks a standard block up.
    """

    file: ast.File
    find_standard: Callable[[str], FoundBlock | None]
    constants: dict[str, Any] = field(default_factory=dict[str, Any])
    blocks: dict[str, FoundBlock] = field(default_factory=dict[str, FoundBlock])
    defaults: dict[str, dict[str, ir.Expr]] = field(default_factory=dict[str, dict[str, ir.Expr]])
    pending: set[str] = field(default_factory=set[str])
    lost: set[str] = field(default_factory=set[str])

    @cached_property
    def labels(self) -> frozenset[str]:
        """Every label of the file, wherever it stands."""
        flows = (part for part in self.file.walk() if isinstance(part, ast.Flow))
        return frozenset(flow.label.name for flow in flows if flow.label)

    def find_block(self, name: str) -> FoundBlock | None:
        """The block that a name means in this file."""
        return self.blocks.get(name) or self.find_standard(name)

    def block_names(self) -> list[str]:
        """Every block that can be called here."""
        return [*self.blocks, *standard_blocks()]

    def variables(self) -> dict[str, Type | None]:
        """The constants as variables, with the type of operators marked."""
        return {name: _OPERATOR if isinstance(value, OpName) else _OTHER for name, value in self.constants.items()}
