"""Try every argument at its most dangerous values in real training steps, and check that the trials can fail."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from cnnspec import CnnspecError
from cnnspec.api import check, loads
from cnnspec.ops import OPS
from cnnspec.ops.inits import INITS
from cnnspec.recipe import AUGMENTATIONS, OPTIMIZERS, SCHEDULES, Scalars
from cnnspec.testing import bounds, isolate, oracle
from cnnspec.testing.bounds import cases, written
from cnnspec.testing.isolate import Isolated, Outcome
from cnnspec.testing.soundness import MEASUREMENTS, report, run


def test_the_most_dangerous_values_train_or_end_with_a_named_error() -> None:
    count = sum(case.dangerous for case in cases())
    tally = run("bounds", count, processes=2)  # this process has threads and must not be forked
    assert tally.wrong == [], report("bounds", tally)
    assert tally.counts["cases"] == count
    assert tally.counts["completed"] > count / 3
    assert tally.counts["refused by the check"] > count / 5


@pytest.mark.slow
def test_all_values_and_pairs_train_or_end_with_a_named_error() -> None:
    tally = run("bounds", len(cases()), processes=2)
    assert tally.wrong == [], report("bounds", tally)


def test_the_command_tries_all_cases() -> None:
    singles, every = cases(pairs=False), cases()
    assert every[: len(singles)] == singles
    assert len(singles) <= MEASUREMENTS["bounds"].count
    assert len(every) <= MEASUREMENTS["bounds"].long


def test_every_argument_has_dangerous_values() -> None:
    tried = {(case.kind, name) for case in cases() if case.dangerous for name, _ in case.values}
    tables = (OPS, INITS, AUGMENTATIONS, OPTIMIZERS, SCHEDULES, {"train": Scalars})
    missing = [
        f"{kind.name} {name}"
        for table in tables
        for kind in table.values()
        for name, parameter in kind.parameters.items()
        if parameter.type.kind not in ("bool", "word", "init", "tensor") and (kind, name) not in tried
    ]
    assert missing == []


def test_each_argument_is_written_where_it_belongs() -> None:
    singles = {(case.place, name): case for case in cases(pairs=False) for name, _ in case.values[:1]}
    wrong = {}
    for key, case in singles.items():
        codes = {found.code for found in check(case.text)}
        if codes & set(bounds.MISWRITTEN):
            wrong[key] = codes
    assert wrong == {}


def test_values_are_written_in_the_language() -> None:
    for value in (-1e18, 1e15, 0.75, 1.2e-38, -3.0):
        model = loads(f"input 3x8x8\ntimes factor={written(value)}\n")
        assert model.nodes[0].op.factor == pytest.approx(value, rel=1e-12)  # type: ignore[attr-defined]


def _fail(*args: object) -> None:
    raise ZeroDivisionError("alpha")


def _misbehave(number: int) -> int:
    if number == 1:
        os.abort()
    if number == 2:
        return len(bytearray(2**31))
    while number == 3:
        pass
    return number


def _failure_of_a_run() -> str:
    bounds._train = _fail  # type: ignore[assignment]
    with Isolated(lambda number: bounds._attempt(cases()[number])) as call:
        return call(0).failure


def _processes_of_many_calls() -> list[int]:
    isolate._MAX_CALLS = 3
    with Isolated(lambda _: os.getpid()) as call:
        return [call(number).value for number in range(7)]


def _outcomes_of_misbehavior() -> list[Outcome]:
    with Isolated(_misbehave, seconds=1, memory=2**29) as call:
        return [call(number) for number in range(5)]


def test_an_exception_in_the_run_is_wrong(fresh: ProcessPoolExecutor) -> None:
    assert fresh.submit(_failure_of_a_run).result() == "ZeroDivisionError: alpha"


def test_calls_that_hang_or_crash_or_exceed_the_memory_end(fresh: ProcessPoolExecutor) -> None:
    fine, crashed, large, hung, next_one = fresh.submit(_outcomes_of_misbehavior).result(timeout=60)
    assert fine[:2] == (0, "")
    assert crashed.failure == "ended by SIGABRT"
    assert large.failure.startswith("MemoryError")
    assert hung.failure in ("ended by SIGXCPU", "ended by SIGALRM")  # the latter on a busy machine
    assert next_one[:2] == (4, "")


def test_a_process_is_replaced_after_many_calls(fresh: ProcessPoolExecutor) -> None:
    first, _, _, second, _, _, third = found = fresh.submit(_processes_of_many_calls).result()
    assert found == [*[first] * 3, *[second] * 3, third]
    assert len({first, second, third}) == 3


def test_a_step_that_leaves_infinite_weights_is_detected() -> None:
    text = "input 3x8x8\nclasses 4\nconv 3x3 4 | global_avgpool | flatten | linear classes\n"
    assert oracle.compare_training_step(loads(text)) == 3
    with pytest.raises(oracle.Unsound, match="finite"):
        oracle.compare_training_step(
            loads(text.replace("conv 3x3 4", "conv 3x3 4 | times 1e15 | times 1e15 | times 1e15"))
        )


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("conv 1x1 1000 | upsample 2000", "the tensor [N, 1000, 16000, 16000]"),
        ("conv 99999x99999 1 pad=50000", "the workspace of `conv`"),
        ("conv_transpose 99999x99999 1", "the workspace of `conv_transpose`"),
    ],
)
def test_tensors_and_workspaces_have_a_limit(text: str, elements: str) -> None:
    with pytest.raises(CnnspecError) as error:
        loads(f"input 3x8x8\n{text}\n")
    assert [found.code for found in error.value.diagnostics] == ["E0405"]
    assert elements in error.value.diagnostics[0].message
