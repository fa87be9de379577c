"""Compare the compiler with the reference evaluator of the tests, on shipped, drawn and wrongly compiled specs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.compare_meaning import compare, compare_expressions, difference
from harness.reference_evaluator import SPECS, operators, read

from cnnspec import ir
from cnnspec.checker import expand, module_names, values
from cnnspec.checker.environment import Frame
from cnnspec.compiler import compile_file
from cnnspec.ir import evaluate
from cnnspec.ops import OPS
from cnnspec.semantics import arguments, definitions
from cnnspec.semantics.loader import shipped_specs

DRAWN = 80
COMMON = ("argument", "blockparameter", "element", "if", "let", "message", "name", "repeat", "require", "row", "when")


@pytest.mark.parametrize("name", [name for name, path in shipped_specs().items() if path.parent == SPECS])
def test_shipped_specs_mean_the_same(name: str) -> None:
    path = shipped_specs()[name]
    assert difference(compile_file(name).require_graph(), read(path), path.parent) is None


def test_the_documented_arguments_are_those_of_the_operators() -> None:
    assert {name: list(known) for name, known in operators().items()} == {
        name: list(op.parameters) for name, op in OPS.items()
    }


def test_drawn_specs_mean_the_same(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    wrong = [found for seed in range(DRAWN) for found in compare(seed, tmp_path, counts)]
    assert wrong == []
    kinds = ("with other values", "extended", "with blocks of another file")
    assert all(counts[kind] >= DRAWN / 5 for kind in kinds), counts
    assert {f"in: {place}" for place in COMMON} - set(counts) == set()


def test_drawn_expressions_have_the_same_values() -> None:
    assert [found for seed in range(60) for found in compare_expressions(seed, Counter())] == []


@pytest.mark.parametrize(
    ("table", "key", "wrong"),
    [
        ("_ARITHMETIC", "//", lambda a, b: int(a / b)),
        ("_ARITHMETIC", "%", lambda a, b: abs(a) % abs(b)),
        ("_ARITHMETIC", "/", lambda a, b: a / b),
        ("_FUNCTIONS", "round_to", (2, lambda x, m: round(x / m) * m)),
        ("_FUNCTIONS", "ceil", (1, lambda x: int(x) + 1)),
        ("_EVALUATORS", "!=", evaluate._equal),
    ],
)
def test_a_planted_error_in_expressions_is_found(
    table: str, key: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(getattr(evaluate, table), key, wrong)
    assert any(compare_expressions(seed, Counter()) for seed in range(60))


# --- planted errors -------------------------------------------------------------------------------


def _in_of_the_braces(patch: pytest.MonkeyPatch) -> None:
    """`in` is the tensor that enters the innermost braces."""
    slot: Any = Frame.__dict__["entering"]

    def keep_first(frame: Frame, entering: Any) -> None:
        try:
            slot.__get__(frame)
        except AttributeError:
            slot.__set__(frame, entering)

    patch.setattr(Frame, "entering", property(lambda frame: slot.__get__(frame), keep_first))


def _in_of_the_row(patch: pytest.MonkeyPatch) -> None:
    """`in` in a row of a table is the tensor that enters the row."""

    def rows(self: Any, table: ir.Braces, frame: Frame, names: Any, x: Any) -> Any:
        for row in table.body:
            frame.entering = x
            x = self._flow(row, frame, names, x)
        return x

    patch.setattr(expand.Expander, "_rows", rows)


def _rows_in_braces(patch: pytest.MonkeyPatch) -> None:
    """The labels of a table are not visible after it."""
    original = expand.Expander._rows
    patch.setattr(
        expand.Expander, "_rows", lambda self, table, frame, *rest: original(self, table, frame.inner(rest[1]), *rest)
    )


def _let_leaks(patch: pytest.MonkeyPatch) -> None:
    """A value defined in braces replaces the outer one."""

    def define(self: Frame, name: str, value: Any, *, varies: bool) -> None:
        self.values[name] = value
        self.operators = None

    patch.setattr(Frame, "define", define)


def _outermost_label(patch: pytest.MonkeyPatch) -> None:
    """A label is looked up in the outermost braces first."""
    original = Frame.outward
    patch.setattr(Frame, "outward", lambda self: reversed(list(original(self))))


def _default_at_the_call(patch: pytest.MonkeyPatch) -> None:
    """`in` in the default of a parameter is that of the call."""
    original = values.ValueEvaluator.block_frame

    def block_frame(self: Any, block: Any, call: Any, frame: Frame, x: Any, iteration: int) -> Any:
        return original(self, block, call, frame, frame.entering, iteration)

    patch.setattr(values.ValueEvaluator, "block_frame", block_frame)


def _once_always(patch: pytest.MonkeyPatch) -> None:
    """A `once` parameter is given to every call of a repeat."""
    original = values.ValueEvaluator.block_frame
    patch.setattr(values.ValueEvaluator, "block_frame", lambda self, *args: original(self, *args[:4], 0))


def _reused_operators(patch: pytest.MonkeyPatch) -> None:
    """An operator is reused where its arguments read `in`."""
    patch.setattr(expand, "reads_image", lambda _: False)


def _positions_of_labels(patch: pytest.MonkeyPatch) -> None:
    """A label takes a position."""

    def name(self: Any, call: Any, frame: Any, names: Any, label: str | None, iteration: int | None) -> str:
        if label is not None:
            names.next_position()
        return original(self, call, frame, names, label, iteration)

    original = module_names.ModuleNamer.name
    patch.setattr(module_names.ModuleNamer, "name", name)


def _no_defaults(patch: pytest.MonkeyPatch) -> None:
    """`default` has no effect."""
    patch.setattr(arguments.ArgumentBinder, "_complete", staticmethod(lambda binding: None))


def _values_from_outside(patch: pytest.MonkeyPatch) -> None:
    """Values from outside do not reach the parameters."""
    patch.setattr(definitions.FileDefiner, "_given_value", lambda self, name, stated, given, span: stated)


def _false_when(patch: pytest.MonkeyPatch) -> None:
    """A condition is not evaluated with the input of the statement."""
    original = values.truth
    patch.setattr(values, "truth", lambda expr, names, entering: original(expr, names, (1, 1, 1)))


PLANTED: list[Callable[[pytest.MonkeyPatch], None]] = [
    _in_of_the_braces, _in_of_the_row, _rows_in_braces, _let_leaks, _outermost_label, _default_at_the_call,
    _once_always, _reused_operators, _positions_of_labels, _no_defaults, _values_from_outside, _false_when,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_error_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant(monkeypatch)
    variants = plant is _values_from_outside
    assert any(compare(seed, tmp_path, Counter(), variants=variants) for seed in range(300))
