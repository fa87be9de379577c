"""Test the optimizers and schedules of the recipe."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from harness.runs import TINY, code
from pytorch_lightning.plugins import MixedPrecision
from torch import nn

from cnnspec import CnnspecError, build, load, loads
from cnnspec.recipe import OPTIMIZERS, SCHEDULES, Recipe, Setting
from cnnspec.training import TrainOptions, train
from cnnspec.training.loop import optimizers
from cnnspec.training.loop.optimizers import make_optimizer
from cnnspec.training.runs.options import effective_recipe


def test_every_declared_optimizer_and_schedule_has_a_row():
    assert set(optimizers.OPTIMIZERS) == set(OPTIMIZERS)
    assert set(optimizers.SCHEDULES) == set(SCHEDULES)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_equals_that_of_torch(name: str):
    setting = Setting.of(OPTIMIZERS[name](lr=0.03, weight_decay=0.01))
    weights = [nn.Parameter(torch.zeros(3))]
    optimizer, _ = make_optimizer(weights, Recipe(optimizer=setting), 10)
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.03)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def rates(schedule: Setting, epochs: int, steps: int) -> list[float]:
    """Return the learning rate of each step."""
    recipe = Recipe(optimizer=Setting.of(OPTIMIZERS["sgd"](lr=1.0)), schedule=schedule, epochs=epochs)
    optimizer, scheduler = make_optimizer([nn.Parameter(torch.zeros(1))], recipe, steps)
    seen: list[float] = []
    for _ in range(epochs * steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_schedules():
    def epochs(schedule: Any, count: int, steps: int) -> list[float]:
        seen = rates(Setting.of(schedule), count, steps)
        assert all(len(set(seen[i : i + steps])) == 1 for i in range(0, len(seen), steps))
        return seen[::steps]

    assert epochs(SCHEDULES["constant"](), 3, 2) == [1, 1, 1]
    assert epochs(SCHEDULES["multistep"](at=(2, 3), gamma=0.5), 5, 3) == [1, 1, 0.5, 0.25, 0.25]
    assert epochs(SCHEDULES["step"](every=2, gamma=0.5), 5, 3) == [1, 1, 0.5, 0.5, 0.25]
    cosine = rates(Setting.of(SCHEDULES["cosine"](end=0.1)), 10, 10)
    assert cosine[0] == 1
    assert cosine[50] == pytest.approx(0.55)
    assert cosine[-1] == pytest.approx(0.1, abs=1e-3)
    cycle = rates(Setting.of(SCHEDULES["onecycle"](warmup=0.25)), 10, 10)
    assert max(cycle) == pytest.approx(1)
    assert cycle.index(max(cycle)) == 24
    assert cycle[0] == pytest.approx(1 / 25)
    assert cycle[-1] < 1e-4


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_one_cycle_of_few_steps(warmup: float, steps: int):
    assert all(0 <= rate <= 1 for rate in rates(Setting.of(SCHEDULES["onecycle"](warmup=warmup)), 1, steps))


@pytest.mark.parametrize("lr", [0.0, 1.2e-38, 1e15])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rates_of_extreme_schedules_are_numbers(name: str, lr: float) -> None:
    kind = SCHEDULES[name]
    extreme: dict[str, list[Any]] = {"at": [(1,), (1, 10**9), (*range(1, 60),)], "every": [1, 10**9], "anneal": ["cos"]}
    tried = {
        p: extreme.get(p, [0.0, 1.0] if name == "onecycle" else [0.0, 1.2e-38, 1.0, 1e15]) for p in kind.parameters
    }
    for values in product(*tried.values()):
        args = dict(zip(tried, values, strict=True))
        if lr == 0:
            args |= {"end": 0.0} if "end" in args else {}
        recipe = Recipe(
            optimizer=Setting.of(OPTIMIZERS["sgd"](lr=lr)), schedule=Setting.of(kind(**args)), epochs=60, batch=2
        )
        optimizer, schedule = make_optimizer([nn.Parameter(torch.zeros(1))], recipe, 1)
        for _ in range(60):
            rate = optimizer.param_groups[0]["lr"]
            assert rate >= 0, (args, rate)  # which no NaN is
            optimizer.step()
            schedule.step()


def test_the_warm_up_is_linear():
    for name in ("constant", "cosine", "linear", "multistep", "step"):
        needed = {"multistep": {"at": (3,)}, "step": {"every": 3}}.get(name, {})
        seen = rates(Setting.of(SCHEDULES[name](warmup=2, **needed)), 6, 10)
        assert seen[:20] == pytest.approx([(i + 1) / 21 for i in range(20)])
        assert seen[20] == pytest.approx(1)
    linear = rates(Setting.of(SCHEDULES["linear"](warmup=2, end=0.2)), 6, 10)
    assert linear[40] == pytest.approx(0.6)
    assert linear[59] == pytest.approx(0.22)


def test_a_shorter_run_keeps_the_shape_of_the_schedule() -> None:
    graph = load("resnet20")
    options = TrainOptions(epochs=1)
    recipe = effective_recipe(graph, options)
    assert (recipe.epochs, recipe.planned) == (1, 180)
    assert effective_recipe(graph, TrainOptions()).planned is None
    assert effective_recipe(graph, TrainOptions(epochs=180)).planned is None
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer, schedule = make_optimizer([weight], recipe, 360)
    rates = []
    for _ in range(360):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:200] == [0.1] * 200
    assert rates[200:300] == pytest.approx([0.01] * 100)
    assert rates[300:] == pytest.approx([0.001] * 60)


def test_norms_and_biases_can_be_excluded_from_weight_decay():
    network = build(loads(TINY, name="tiny.cnn"))
    setting = Setting.of(OPTIMIZERS["sgd"](weight_decay=0.1))
    (group,) = optimizers.parameter_groups(network, Recipe(optimizer=setting))
    assert len(group["params"]) == 5
    spared = optimizers.parameter_groups(network, Recipe(optimizer=setting, decay="weights"))
    assert [[weight.ndim for weight in group["params"]] for group in spared] == [[4, 2], [1, 1, 1]]
    optimizer, _ = make_optimizer(spared, Recipe(optimizer=setting), 10)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_updates_filters_as_torch_updates_their_matrix(layout: torch.memory_format):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, bias=True).to(memory_format=layout)  # type: ignore[call-overload]
    matrix = nn.Parameter(conv.weight.detach().permute(0, 2, 3, 1).flatten(1).clone())
    ours = optimizers.Muon(conv.parameters(), 0.01, 0.9, 0.1, True, 0.02)
    theirs = torch.optim.Muon([matrix], 0.01, 0.1, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        conv.weight.grad, conv.bias.grad = torch.randn_like(conv.weight), torch.ones(5)  # type: ignore[union-attr]
        matrix.grad = conv.weight.grad.permute(0, 2, 3, 1).flatten(1).clone()
        before = conv.bias.detach().clone()  # type: ignore[union-attr]
        ours.step()
        theirs.step()
        assert torch.allclose(conv.bias, before - 0.02, atol=1e-3)  # type: ignore[arg-type]
    assert torch.allclose(conv.weight.permute(0, 2, 3, 1).flatten(1), matrix, atol=1e-2)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_scaled_gradients_are_clipped_at_their_real_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Train in float16 with a loss scale, as on a GPU, and compare the norms before clipping with those in float32."""
    graph = loads(
        TINY + f"train {{\n    data fashion_mini train=128 val=16\n    batch 64\n    epochs 1\n"
        f"    optimizer {name} lr=1e-6\n    clip 0.01\n}}"
    )
    clip, norms = torch.nn.utils.clip_grad_norm_, []

    def record(*arguments: Any) -> torch.Tensor:
        norms.append(float(clip(*arguments)))
        return torch.tensor(norms[-1])

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", record)
    train(graph, TrainOptions(out=tmp_path / "fp32", plots=False))
    trainer = pl.Trainer
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    monkeypatch.setattr(pl, "Trainer", lambda **given: trainer(**{**given, "precision": None, "plugins": [plugin]}))
    train(graph, TrainOptions(out=tmp_path / "fp16", plots=False))
    assert scaler.get_scale() == 2.0**10
    assert norms[2:] == pytest.approx(norms[:2], rel=0.02)
    assert min(norms) > 0.01


def test_float16_without_a_gpu_is_an_error(tmp_path: Path):
    for given in ("fp16", "16-mixed", "16"):
        with pytest.raises(CnnspecError) as raised:
            train(loads(TINY), TrainOptions(out=tmp_path, precision=given, accelerator="cpu"))
        assert code(raised) == "E0510"
    assert not list(tmp_path.iterdir())
