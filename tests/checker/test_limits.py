"""Limits that hold while a network is written out, each reached by a spec made for it."""

from __future__ import annotations

import pytest

from cnnspec.api import check, loads
from cnnspec.limits import MAX_DEPTH, MAX_ERRORS, MAX_EVALUATIONS, MAX_NAMES, MAX_NODES


def tower(height: int, call: str = "{}", *, top_first: bool = False) -> str:
    """Blocks that call one another."""
    blocks = ["block b0() { relu }"]
    blocks += [f"block b{n + 1}() {{ {call.format(f'b{n}')} }}" for n in range(height)]
    return "\n".join(["input 3x8x8", *(reversed(blocks) if top_first else blocks), f"b{height}", ""])


SPECS = {
    "the nesting of block calls exceeds the limit": tower(60, top_first=True),
    "the nesting of elements exceeds the limit": tower(40, "{{ {{ {} }} }}"),
    "the nesting of ": tower(40, "{{ {{ {} }} }}", top_first=True),
    "named values": "input 3x8x8\nblock b(\n"
    + "".join(f"p{n} = 1,\n" for n in range(MAX_NAMES + 1))
    + ") { relu }\nb\n",
    "a module path exceeds": "input 3x8x8\n"
    + "".join(f"{'long' * 30}{n}: {{\n" for n in range(20))
    + "a: relu\nb: relu\n"
    + "}\n" * 20,
    "elements": "input 3x8x8\n" + "upsample 1000000\n" * 3,
    "evaluated expression terms": "input 3x8x8\nrepeat 4000 as i { let a = "
    + " + ".join(["i"] * 60)
    + "\nrelu  when a < 0 }\n",
    "operators": "input 3x8x8\nrepeat 4000 { relu; relu; relu }\n",
    "parameters": "input 3x8x8\nflatten | linear 1000000000 | linear 100\n",
    "the name of a call exceeds": 'input 3x8x8\nrelu name="' + "long" * 40 + '"\n',
}  # fmt: skip


@pytest.mark.parametrize("what", SPECS)
def test_a_limit_is_named(what: str) -> None:
    errors = [diagnostic for diagnostic in check(SPECS[what]) if diagnostic.severity == "error"]
    assert [error.code[:3] for error in errors] == ["E04"], [str(error)[:300] for error in errors]
    assert what in errors[0].message
    assert "limit of" in errors[0].message
    assert errors[0].help


def test_parameters_are_limited_even_where_many_are_allowed() -> None:
    (error,) = check("input 3x8x8\nflatten | linear 1000000000 | linear 1000000000\n", allow_huge=True)
    assert "exceeds the limit of 1,000,000,000,000,000" in error.message
    assert error.help == "use fewer channels or smaller kernels"


def test_networks_below_the_limits() -> None:
    assert len(loads(f"input 3x8x8\nrepeat {MAX_NODES // 4} {{ relu; relu; relu }}\n").nodes) == MAX_NODES // 4 * 3
    assert loads(tower(40)).nodes[0].path == ".".join(["0"] * 42)
    assert MAX_DEPTH > 48
    assert MAX_EVALUATIONS > 3 * MAX_NODES


def test_of_very_many_faults_the_first_are_shown() -> None:
    values = "".join(f"let a{n} = b\n" for n in range(MAX_ERRORS + 50))
    *shown, last = check(f"input 3x8x8\nrelu\n{values}")
    assert [fault.line for fault in shown] == list(range(3, MAX_ERRORS + 3))
    assert last.code == "E0405"

    warnings = check(f"param b = 3\ninput 3x8x8\nrelu\n{values}")
    assert [warning.line for warning in warnings] == list(range(4, MAX_ERRORS + 4))
    assert all(not warning.notes for warning in warnings[:-1])
    assert warnings[-1].notes == ("50 more warnings not shown: fix these first, then check again",)

    silenced = check(f"# cnnspec: ignore-file W0104\nparam b = 3\ninput 3x8x8\nrelu\n{values}")
    assert silenced == []
