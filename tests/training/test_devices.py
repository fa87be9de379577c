"""Test the choice of devices and strategies, the options of DDP, and learning rates for another batch size."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.processes import run_in_processes
from harness.runs import DEEPER, code, tiny
from pytorch_lightning.strategies import StrategyRegistry

from cnnspec import CnnspecError, loads
from cnnspec.recipe import OPTIMIZERS, SCHEDULES, Cosine, Group, Recipe, Setting
from cnnspec.training import TrainOptions, plan, train
from cnnspec.training.loop.processes import PATIENCE
from cnnspec.training.runs import devices
from cnnspec.training.runs.options import SCALES, effective_recipe, scaled_rates

SPEC = tiny("data fashion_mini val=4000; batch 99; epochs 1; optimizer sgd lr=0.1 momentum=0.9", layers=DEEPER)

pytestmark = pytest.mark.usefixtures("one_thread")
COPYING = [name for name in StrategyRegistry.available_strategies()
           if StrategyRegistry[name]["init_params"].get("start_method", "popen") != "popen"]  # fmt: skip


def options(folder: Path, **given: Any) -> TrainOptions:
    fixed: dict[str, Any] = {"memory_format": "channels_last", "threads": 1, "plots": False, "offline": True}
    return TrainOptions(out=folder / "runs", accelerator="cpu", **fixed, **given)


# --- strategies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COPYING)
@pytest.mark.parametrize("count", [1, 2])
def test_strategies_that_copy_the_process_are_refused(name: str, count: int, tmp_path: Path):
    with pytest.raises(CnnspecError) as error:
        train(loads(SPEC), options(tmp_path, devices=count, strategy=name))
    assert code(error) == "E0510"
    assert f"`{name}`" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_notebooks_get_no_strategy_that_copies_the_process():
    """Lightning chooses one in a notebook."""
    assert len(COPYING) > 4
    with pytest.raises(CnnspecError):
        devices.make_strategy("auto", StrategyRegistry.get("ddp_notebook"), {})


@pytest.mark.parametrize(
    ("strategy", "ddp", "parts"),
    [
        ("auto", {"static_graph": True, "bucket_cap_mb": 1}, 1),
        ("ddp", {"gradient_as_bucket_view": True}, 2),
        ("ddp_find_unused_parameters_true", {}, 2),
    ],
)
def test_options_reach_ddp_and_do_not_change_the_result(
    strategy: str, ddp: dict[str, Any], parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    graph = loads(SPEC.replace("epochs 1", f"epochs 1; accumulate {parts}"))
    inits: list[dict[str, Any]] = []
    original = torch.nn.parallel.DistributedDataParallel.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        inits.append({name: value for name, value in kwargs.items() if isinstance(value, int)})
        original(self, *args, **kwargs)

    def job(rank: int) -> Any:
        monkeypatch.setattr(torch.nn.parallel.DistributedDataParallel, "__init__", init)
        try:
            done = train(graph, options(tmp_path, devices=2, strategy=strategy, ddp=ddp))
        except SystemExit:
            return inits
        return inits, done.values["requested"]["ddp"], done.values["val_loss"]

    (kwargs, recorded, loss), other = run_in_processes(2, job)
    alone = train(graph, options(tmp_path / "alone"))
    assert recorded == ddp
    for found in (kwargs, other):
        assert len(found) == 1
        assert {name: found[0][name] for name in ddp} == ddp
        assert found[0].get("find_unused_parameters", False) == strategy.endswith("true")
    assert loss == pytest.approx(alone.values["val_loss"], abs=1e-4)


def test_a_static_graph_in_parts_is_refused(tmp_path: Path):
    """torch fails in the first backward pass."""
    graph = loads(SPEC.replace("epochs 1", "epochs 1; accumulate 2"))

    def job(rank: int) -> str:
        with pytest.raises(CnnspecError) as error:
            train(graph, options(tmp_path, devices=2, ddp={"static_graph": True}))
        return code(error)

    assert run_in_processes(2, job) == ["E0510", "E0510"]
    assert not list(tmp_path.iterdir())


def test_processes_wait_longer_than_lightning_does(tmp_path: Path):
    trainer = devices.make_strategy("ddp", StrategyRegistry.get("ddp"), {})
    assert trainer._timeout == PATIENCE > timedelta(minutes=30)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {}),
        (["static_graph=true", " bucket_cap_mb = 50 "], {"static_graph": True, "bucket_cap_mb": 50}),
        (["static_graph=true", "static_graph=false"], {"static_graph": False}),
    ],
)
def test_read_ddp(texts: list[str], expected: dict[str, Any]):
    assert devices.read_ddp(texts) == expected


@pytest.mark.parametrize(
    "text",
    ["", "=", "static_graph", "static_graph=1", "static_graph=True", "bucket_cap_mb=true", "bucket_cap_mb=0",
     "bucket_cap_mb=-1", "bucket_cap_mb=1.5", "bucket_cap_mb=" + "9" * 5000, "bucket_cap_mb=\u0663", "module=x",
     "device_ids=1", "process_group=true", "x\ny=true"],
)  # fmt: skip
def test_other_options_of_ddp_are_refused(text: str):
    with pytest.raises(CnnspecError) as error:
        devices.read_ddp([text])
    assert code(error) == "E0510"
    assert len(str(error.value)) < 1000


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "given", "macs", "chosen"),
    [
        (8, "auto", devices.MACS_PER_STEP - 1, 1),
        (8, "auto", devices.MACS_PER_STEP, "auto"),
        (1, "auto", 1, "auto"),
        (8, 8, 1, 8),
        (8, "0,1", 1, "0,1"),
    ],
)
def test_short_steps_use_one_gpu(count: int, given: Any, macs: int, chosen: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "device_of", lambda accelerator: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    found, reason = devices.choose_devices(TrainOptions(devices=given), macs)
    assert found == chosen
    assert (reason is not None) == (chosen == 1)
    if reason is not None:
        assert "one of 8 GPUs" in reason
        assert "`--devices 8`" in reason


# --- the learning rate for another batch size -----------------------------------------------------


def recipes() -> list[Recipe]:
    """Return recipes with every optimizer and every schedule."""
    required = {"at": (1,), "every": 1}
    kinds = [("optimizer", kind) for kind in OPTIMIZERS.values()] + [("schedule", kind) for kind in SCHEDULES.values()]
    found = [(entry, kind(**{name: required[name] for name in kind.required})) for entry, kind in kinds]
    return [Recipe().model_copy(update={entry: Setting.of(value)}) for entry, value in found]


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: f"{recipe.optimizer.name}-{recipe.schedule.name}")
@pytest.mark.parametrize("rule", SCALES)
def test_every_learning_rate_is_scaled_and_nothing_else(recipe: Recipe, rule: str):
    group = Setting.of(Group(modules=("a",), lr=0.5))
    recipe = recipe.model_copy(update={"batch": 32, "rates": (group,)})
    if recipe.schedule.name == "cosine":
        recipe = recipe.model_copy(update={"schedule": Setting.of(Cosine(end=0.01, warmup=2))})
    factor = {"none": 1, "linear": 6, "sqrt": math.sqrt(6)}[rule]
    scaled = recipe.model_copy(update=scaled_rates(recipe, 192, rule))
    for entry in Recipe.model_fields:
        was, now = getattr(recipe, entry), getattr(scaled, entry)
        if entry not in ("optimizer", "schedule", "rates"):
            assert was == now
            continue
        for before, after in zip(*(x if entry == "rates" else (x,) for x in (was, now)), strict=True):
            assert before.name == after.name
            for name, value in before.args.items():
                is_rate = name in ("lr", "adam_lr", "end")
                assert after.args[name] == (pytest.approx(value * factor, rel=1e-9) if is_rate else value)


def test_an_unknown_rule_is_an_error():
    with pytest.raises(CnnspecError) as error:
        effective_recipe(loads(SPEC), TrainOptions(batch=4, scale_lr="cubic"))
    assert code(error) == "E0510"


def test_the_rule_is_planned_recorded_and_kept_when_the_run_resumes(tmp_path: Path, output: Any):
    graph = loads(SPEC)
    given: dict[str, Any] = {"batch": 396, "scale_lr": "linear"}
    planned = plan(graph, options(tmp_path, **given))
    assert planned["device"]["learning_rate"] == "times 4: linear in the batch, 396 in place of 99"
    assert {"entry": "optimizer", "value": "sgd lr=0.4 momentum=0.9 weight_decay=0", "origin": "option"} in [
        {**row, "value": row["value"].replace(" nesterov=false", "")} for row in planned["recipe"]
    ]
    first = train(graph, options(tmp_path, **given, epochs=2, watch=lambda epoch, scores: True))
    assert (first.state, first.values["recipe"]["optimizer"]["args"]["lr"]) == ("pruned", 0.4)
    assert first.values["requested"]["scale_lr"] == "linear"
    again = train(graph, options(tmp_path, resume=True))  # neither is given again
    assert (again.state, again.values["recipe"]["optimizer"]["args"]["lr"]) == ("finished", 0.4)
    assert again.values["requested"]["scale_lr"] == "linear"
    assert again.values["changes"] == []
