"""Transfer learning: frozen modules, learning rates by group, and class weights, also after an interruption."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
import torch
from torch import nn
from torch.nn import functional as F

from cnnspec import CnnspecError, Graph, build, loads
from cnnspec.recipe import OPTIMIZERS, SCHEDULES, Recipe, Setting
from cnnspec.semantics.recipe_rules import frozen_modules
from cnnspec.training import Result
from cnnspec.training.loop.optimizers import optimizer_for, parameter_groups
from cnnspec.training.loop.processes import Processes
from cnnspec.training.loop.task import Task, class_weights
from cnnspec.training.runs.options import TrainOptions
from cnnspec.training.runs.train import _make_network

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = """\
network tiny
input 1x28x28
classes 10
stem conv 3x3 8 stride=2 | bn | relu
layer1: { a: conv 1x1 8; b: bn; dropout 0.5 }
layer2: { a: conv 3x3 8 stride=2; bn; type: relu }
head global_avgpool | flatten | linear classes
aux extra from @layer1 weight=0.3 { global_avgpool | flatten | linear classes }
train {
    data      fashion_mini val=100 train=120 test=50
    optimizer OPTIMIZER
    schedule  linear
    batch     20
    epochs    2
    ENTRIES
}
"""


def tiny(entries: str = "", optimizer: str = "sgd lr=0.1 momentum=0.9") -> Graph:
    return loads(SPEC.replace("ENTRIES", entries.replace("; ", "\n")).replace("OPTIMIZER", optimizer), name="tiny.cnn")


def weights_of(result: Result, file: str = "last.ckpt") -> dict[str, torch.Tensor]:
    state = torch.load(result.folder / "checkpoints" / file, weights_only=True)
    return {key.removeprefix("network."): value for key, value in state["state_dict"].items()}


def initial(graph: Graph) -> dict[str, torch.Tensor]:
    return _make_network(graph, graph.recipe, TrainOptions()).state_dict()


@pytest.mark.parametrize(
    ("entry", "modules"),
    [
        ("freeze stem", {"stem"}),
        ("freeze [stem, layer2]", {"stem", "layer2"}),
        ('freeze "layer1.b"', {"layer1.b"}),
        ("freeze until=layer2", {"stem", "layer1"}),
        ("freeze until=stem", set()),
        ('freeze head until="layer1.b"', {"stem", "layer1.a", "head"}),
        ("freeze extra layer1; ema 0.5", {"extra", "layer1"}),
        ("freeze stem; mixup 0.2; clip 1; accumulate 2", {"stem"}),
    ],
)
def test_frozen_modules_keep_weights_and_statistics(run: Callable[..., Result], entry: str, modules: set[str]) -> None:
    graph = tiny(entry)
    before, after = initial(graph), weights_of(run(graph))
    for key, value in after.items():
        frozen = any(key.startswith(f"{module}.") for module in modules)
        counter = key.endswith("num_batches_tracked")
        if not counter or frozen:
            assert torch.equal(value, before[key]) == frozen, key


PARAMETERS = """\
input 3x8x8
classes 3
stem conv 3x3 4
parts.0: { conv 3x3 4; gain: scale bare; scale }
parts.1: conv 3x3 4 | shift bare
gain: scale bare
again @parts.0
head global_avgpool | flatten | linear classes
train { optimizer sgd lr=0.1; ENTRIES }
"""
ALL_PARAMETERS = """stem.weight parts.0.0.weight parts.0.gain parts.0.1.weight parts.1.0.weight parts.1.1 gain
    head.2.weight head.2.bias""".split()


@pytest.mark.parametrize("path", ["stem", "parts", "parts.0", "parts.0.gain", "parts.1", "gain", "head"])
def test_a_path_includes_all_parameters_inside(path: str) -> None:
    """Those of the levels of path labels, and those of `bare` operators, which have no module."""

    def rates(entries: str) -> dict[str, float | None]:
        graph = loads(PARAMETERS.replace("ENTRIES", entries))
        network = build(graph)
        groups = parameter_groups(network, graph.recipe)
        found = {id(weight): group.get("lr") for group in groups for weight in group["params"]}
        return {name: found[id(weight)] for name, weight in network.named_parameters() if id(weight) in found}

    inside = {name for name in ALL_PARAMETERS if f"{name}.".startswith(f"{path}.")}
    assert {*rates(f'freeze "{path}"')} == {*ALL_PARAMETERS} - inside
    assert rates(f'rates group "{path}" lr=0.5') == {name: 0.5 if name in inside else None for name in ALL_PARAMETERS}
    before = ALL_PARAMETERS[: min(map(ALL_PARAMETERS.index, inside))]
    assert {*rates(f'freeze until="{path}"')} == {*ALL_PARAMETERS[len(before) :]}


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS])
@pytest.mark.parametrize("schedule", [*SCHEDULES])
def test_groups_have_their_own_rates(optimizer: str, schedule: str) -> None:
    """The schedule scales every group as it scales that of the optimizer."""
    entries = 'freeze stem; rates group layer1 lr=0.02 | group "layer1.b" head lr=0.3; decay weights'
    graph = tiny(entries, f"{optimizer} lr=0.1 weight_decay=0.01")
    required: dict[str, Any] = {"at": (1,), "every": 1}
    kind = SCHEDULES[schedule]
    setting = Setting.of(kind(**{name: required[name] for name in kind.required}))
    recipe = graph.recipe.model_copy(update={"schedule": setting})
    network = build(graph)
    trainer, scheduler = optimizer_for(network, recipe, 6)
    names = {id(weight): name for name, weight in network.named_parameters()}
    first = {names[id(w)]: group["lr"] for group in trainer.param_groups for w in group["params"]}
    base = first["layer2.a.weight"]
    assert not any(name.startswith("stem") for name in first)
    assert set(first) == {name for name in names.values() if not name.startswith("stem")}
    for name, rate in first.items():
        ratio = 3.0 if name.startswith(("layer1.b", "head")) else 0.2 if name.startswith("layer1") else 1.0
        assert rate == pytest.approx(base * ratio), name
    for _ in range(5):
        trainer.step()
        scheduler.step()
    later = {names[id(w)]: group["lr"] for group in trainer.param_groups for w in group["params"]}
    for name in first:
        assert later[name] * base == pytest.approx(first[name] * later["layer2.a.weight"]), name
    decays = {names[id(w)]: group["weight_decay"] for group in trainer.param_groups for w in group["params"]}
    assert all((decay == 0) == (dict(network.named_parameters())[name].ndim == 1) for name, decay in decays.items())


@pytest.mark.parametrize("optimizer", ["sgd lr=0.1", "muon lr=0.1 adam_lr=0.1"])
def test_a_rate_of_zero_changes_nothing(run: Callable[..., Result], optimizer: str) -> None:
    graph = tiny("rates group stem head lr=0", optimizer)
    before, after = initial(graph), weights_of(run(graph, epochs=1))
    for key, value in after.items():
        if key.endswith(("weight", "bias")):
            assert torch.equal(value, before[key]) == key.startswith(("stem", "head")), key


def test_without_the_entries_the_groups_are_as_before() -> None:
    graph = tiny()
    network = build(graph)
    (group,) = parameter_groups(network, graph.recipe)
    assert [id(weight) for weight in group["params"]] == [id(weight) for weight in network.parameters()]


class OneBatch(Task):
    """A task that computes the gradients of one batch, without a trainer."""

    def __init__(self, graph: Graph, network: nn.Module, weights: torch.Tensor, parts: int) -> None:
        super().__init__(graph, network, graph.recipe, 1)
        self._class_weights, self.progress.parts = weights, parts
        self.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign, assignment]
        data = SimpleNamespace(train=range(11))
        self._hidden["context"] = SimpleNamespace(data=data, processes=Processes())


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_loss_and_gradients_are_those_of_torch(parts: int, smoothing: float) -> None:
    torch.manual_seed(3)
    text = "input 1x4x4\nclasses 5\nhead flatten | linear classes\ntrain { label_smoothing SMOOTHING }"
    graph = loads(text.replace("SMOOTHING", str(smoothing)))
    network = build(graph)
    weights = torch.tensor([0.5, 0.0, 2.0, 1.0, 3.0])
    images, labels = torch.randn(11, 1, 4, 4), torch.tensor([0, 2, 4, 3, 3, 0, 1, 1, 2, 4, 4])
    expected = F.cross_entropy(network(images), labels, weights, label_smoothing=smoothing)
    gradients = torch.autograd.grad(expected, list(network.parameters()))
    task = OneBatch(graph, network, weights, parts)
    loss, _ = task._add_gradients(images, labels)
    torch.testing.assert_close(loss, expected.detach())
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    class Images:
        labels = torch.tensor([0, 0, 0, 2, 2, 3])

    class Data:
        train, classes = Images, 5

    recipe = loads(
        "input 1x4x4\nclasses 5\nhead flatten | linear classes\ntrain { loss cross_entropy class_weights=balanced }"
    )
    found = class_weights(recipe.recipe, Data)  # type: ignore[arg-type]
    assert found is not None
    assert found.tolist() == pytest.approx([6 / 9, 0, 1, 2, 0])
    assert class_weights(Recipe(), Data) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["sgd lr=0.1 momentum=0.9", "muon lr=0.01 adam_lr=0.01", "adamw"])
def test_an_interrupted_run_continues_exactly(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    entries = "freeze until=layer1; rates group layer2 lr=0.03; loss cross_entropy class_weights=balanced; ema 0.9"
    graph = tiny(entries, optimizer)
    whole = weights_of(run(graph))
    step, count = Task.training_step, 0

    def stopping(self: Task, *args: Any) -> None:
        nonlocal count
        step(self, *args)
        count += 1
        if count == 8:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Task, "training_step", stopping)
    assert run(graph).state == "interrupted"
    resumed = run(graph, resume=True)
    assert resumed.state == "finished"
    assert all(torch.equal(value, whole[key]) for key, value in weights_of(resumed).items())


def test_changed_modules_are_a_change_that_can_be_accepted(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count = Task.training_step, 0

    def stopping(self: Task, *args: Any) -> None:
        nonlocal count
        step(self, *args)
        count += 1
        if count == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Task, "training_step", stopping)
    run(tiny("freeze stem"))
    with pytest.raises(CnnspecError, match=r"freeze"):
        run(tiny("freeze stem layer1; rates group head lr=0.5"), resume=True)
    assert (
        run(tiny("freeze stem layer1; rates group head lr=0.5"), resume=True, accept_changes=True).state == "finished"
    )


def test_modules_with_the_name_of_an_attribute_can_be_frozen(run: Callable[..., Result]) -> None:
    graph = tiny('freeze "layer2.type" "layer2.a"')
    assert frozen_modules(graph.recipe, graph) == {"layer2.type", "layer2.a"}
    assert run(graph, epochs=1).state == "finished"


def test_the_help_for_other_classes_names_the_option(run: Callable[..., Result], tmp_path: Path) -> None:
    graph = loads(SPEC.replace("classes 10", "classes 7").replace("ENTRIES", "").replace("OPTIMIZER", "sgd"))
    with pytest.raises(CnnspecError) as raised:
        run(graph)
    assert "`--set classes=10`" in str(raised.value.diagnostics[0].help)
