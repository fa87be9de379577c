"""Test training runs: files, results, errors, interruption and resuming."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.batches import stop_at, watch
from harness.runs import TINY, code
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cnnspec import CnnspecError, Graph, build, load, loads
from cnnspec.backends.torch.weights import read_weights
from cnnspec.recipe import Cifar100, FashionMini, Folder, Recipe, Setting
from cnnspec.training import Result, TrainOptions, evaluate, train
from cnnspec.training.data.batches import EpochBatches
from cnnspec.training.data.datasets import load_data
from cnnspec.training.loop import autotune
from cnnspec.training.loop.average import WeightAverage
from cnnspec.training.loop.journal import read_journal
from cnnspec.training.loop.task import Task, check_parts, part_sizes
from cnnspec.training.runs.folder import RunFolder
from cnnspec.training.runs.json_files import read_model
from cnnspec.training.runs.listing import list_runs
from cnnspec.training.runs.lookup import stored_runs
from cnnspec.training.runs.progress import ProgressDisplay

NETWORK = (
    TINY
    + """train {
    data    fashion_mini val=2000
    augment hflip | random_crop pad=2
    batch   250
    epochs  3
    RECIPE
}
"""
)
STEPS = 16  # 4,000 images


def tiny(recipe: str = "optimizer sgd lr=0.1 momentum=0.9; schedule onecycle") -> Graph:
    return loads(NETWORK.replace("RECIPE", recipe), name="tiny.cnn")


pytestmark = pytest.mark.usefixtures("one_thread")


def checkpoint(result: Result) -> dict[str, Any]:
    return torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)


# --- files ----------------------------------------------------------------------------------------


def test_a_run_writes_all_files_into_its_folder(run: Callable[..., Result], tmp_path: Path):
    graph, out = tiny(), io.StringIO()
    result = run(graph, console=Console(file=out, width=200))
    assert result.folder == tmp_path / "runs" / "tiny" / "1"
    assert (result.state, result.exit_code) == ("finished", 0)
    stored = json.loads((result.folder / "result.json").read_text())
    assert stored == json.loads(json.dumps(result.values))
    assert stored["parameters"] == graph.parameter_count
    assert stored["macs"] == graph.macs
    assert (stored["epochs"], stored["seed"], stored["state"]) == (3, 42, "finished")
    assert {"cnnspec", "torch", "python"} <= stored["versions"].keys()
    assert Recipe.model_validate(stored["recipe"]) == graph.recipe
    assert (result.folder / "spec.cnn").read_text() == graph.text
    assert read_model(result.folder) == graph.model
    assert (stored["format_version"], json.loads((result.folder / "model.json").read_text())["format_version"]) == (
        1,
        1,
    )
    for split in ("val", "test"):
        found = evaluate(graph, result.folder / "checkpoints" / "best.safetensors", split=split)  # type: ignore[arg-type]
        assert found[f"{split}_acc"] == stored[f"{split}_acc"]
        assert found[f"{split}_loss"] == stored[f"{split}_loss"]
        assert found == {
            **evaluate(graph, result.folder / "checkpoints" / "best.ckpt", split=split),
            "weights": found["weights"],
        }  # type: ignore[arg-type]
    with (result.folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["val_acc"]) for row in rows if row["val_acc"]]
    assert len(scores) == 3
    assert max(scores) == pytest.approx(stored["val_acc"])
    assert stored["best_epoch"] == scores.index(max(scores)) + 1
    assert any(row["lr"] for row in rows)
    assert list((result.folder / "tensorboard").glob("events*"))
    lines = out.getvalue().splitlines()
    assert sum(line.startswith("epoch") for line in lines) == 3
    assert "\x1b" not in out.getvalue()
    assert not list(result.folder.rglob("*.part"))


def test_tensorboard_shows_graph_learning_rate_and_metrics(run: Callable[..., Result]):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run(tiny(), epochs=1).folder / "tensorboard"))
    events.Reload()
    assert events.Tags()["graph"]
    assert {"lr", "loss", "train_loss", "train_acc", "val_loss", "val_acc"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("recipe", ["optimizer sgd lr=0.1", "optimizer sgd lr=1e9"])
def test_no_thread_of_a_run_is_left(recipe: str, run: Callable[..., Result]):
    before = set(threading.enumerate())
    graph = loads(NETWORK.replace(" | bn", "").replace("RECIPE", recipe), name="tiny.cnn")
    with suppress(CnnspecError):  # the second run diverges
        run(graph, epochs=1)
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(30)
    assert [thread.name for thread in left if thread.is_alive()] == []


def test_the_same_seed_gives_the_same_weights(run: Callable[..., Result]):
    first, again, other = (run(tiny(), epochs=1, seed=seed) for seed in (1, 1, 2))
    assert [r.folder.name for r in (first, again, other)] == ["1", "2", "3"]
    one, two, three = (checkpoint(r)["state_dict"] for r in (first, again, other))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["network.stem.0.weight"], three["network.stem.0.weight"])
    assert first.values["test_acc"] == again.values["test_acc"]


def test_options_override_the_recipe_and_are_stored(run: Callable[..., Result]):
    result = run(tiny(), epochs=1, batch=500, seed=7, data=Setting.of(FashionMini(val=0)))
    recipe = Recipe.model_validate(result.values["recipe"])
    assert (recipe.epochs, recipe.batch, recipe.seed) == (1, 500, 7)
    assert checkpoint(result)["global_step"] == 12
    # No validation images: the last weights are tested.
    assert result.values["val_acc"] is None
    assert result.values["test_acc"] is not None
    assert result.values["best_epoch"] == 1


def screen(output: str, width: int) -> list[str]:
    """Return the lines on a terminal after an output, and check that no line of a progress display ever wrapped."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|.|\n|\r", output):
        if part == "\n":
            row, column = row + 1, 0
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b"):
            number = int(re.sub(r"\D", "", part) or 1)
            if part.endswith("A"):
                row -= number
            elif part.endswith("K"):
                lines[row] = ""
            assert part[-1] in "AKmhl", part
        else:
            if column == width:
                assert not lines[row].startswith("epoch"), lines[row]
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            lines[row] = (lines[row][:column].ljust(column) + part + lines[row][column + 1 :]).rstrip()
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return lines


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_the_lines_of_a_terminal_fit_and_a_stop_leaves_no_part_of_the_bar(
    width: int, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ProgressDisplay, "INTERVAL", 0.0)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1, 2, signal.SIGINT)
        assert run(tiny(), epochs=3, batch=250, console=console, resume_command="the command").state == "interrupted"
    assert run(tiny(), resume=True, console=console).state == "finished"
    shown = screen(out.getvalue(), width)
    assert not any(character in line for line in shown for character in "━╸╺")
    epochs = [line for line in shown if line.startswith("epoch")]
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"]
    whole = r"epoch [123]/3(  train loss [\d.]+ acc [\d.]+%)?(  val loss [\d.]+ acc [\d.]+%( best)?)?(  [\d.]+ s)?"
    assert all(re.fullmatch(whole, line) for line in epochs), epochs
    assert ("val loss" in epochs[0], "train loss" in epochs[0]) == (width >= 60, width > 60)
    text = "".join(shown).replace(" ", "")
    assert "stopimmediately" in text
    assert "resumewith`thecommand`" in text
    if width == 60:
        assert re.search(r"epoch 2/3  loss [\d.]+ acc [\d.]+%  0:\d\d left", out.getvalue())


# --- the recipe -----------------------------------------------------------------------------------


def test_settings_that_torch_rejects_are_diagnostics(run: Callable[..., Result], tmp_path: Path):
    with pytest.raises(CnnspecError) as error:
        run(tiny("optimizer sgd lr=0.1 nesterov"))
    assert code(error) == "E0512"
    assert not (tmp_path / "runs").exists()


def test_a_training_step_equals_plain_torch(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    """Train one epoch by hand with the same batches, loss with label smoothing, and optimizer."""
    batches = EpochBatches.num_batches.fget
    monkeypatch.setattr(EpochBatches, "num_batches", property(lambda self: batches(self) if self.seed is None else 3))
    text = NETWORK.replace("dropout 0.1 | ", "").replace(
        "RECIPE", "optimizer sgd lr=0.1 momentum=0.9 weight_decay=1e-3; schedule constant; label_smoothing 0.1"
    )
    graph = loads(text, name="tiny.cnn")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    watch(monkeypatch, lambda batches, _, batch: seen.append(batch) if batches.seed is not None else None)
    trained = checkpoint(run(graph, epochs=1, memory_format="channels_last", threads=1))["state_dict"]
    torch.manual_seed(42)
    module = build(graph).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(module.parameters(), 0.1, 0.9, weight_decay=1e-3, fused=True)
    assert len(seen) == 3
    for images, labels in seen:
        optimizer.zero_grad()
        F.cross_entropy(module(images), labels, label_smoothing=0.1).backward()
        optimizer.step()
    for key, tensor in module.state_dict().items():
        assert torch.equal(trained[f"network.{key}"], tensor)


def test_auxiliary_heads_are_trained_and_not_tested(run: Callable[..., Result]):
    text = NETWORK.replace("RECIPE", "optimizer sgd lr=0.1").replace(
        "train {", "aux side from @stem weight=0.3 {\n    global_avgpool | flatten | linear classes\n}\ntrain {"
    )
    result = run(loads(text, name="tiny.cnn"), epochs=1)
    weights = read_weights(result.folder / "checkpoints" / "best.safetensors")
    assert any(key.startswith("side.") for key in weights)
    assert result.values["test_acc"] is not None


def test_averaged_weights_are_tested(run: Callable[..., Result]):
    result = run(tiny("optimizer sgd lr=0.1; ema 0.9"), epochs=2)
    saved = checkpoint(result)
    averaged, trained = saved["state_dict"], saved["trained"]
    assert not torch.equal(averaged["network.stem.0.weight"], trained["stem.0.weight"])
    best = torch.load(result.folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    weights = read_weights(result.folder / "checkpoints" / "best.safetensors")
    assert all(torch.equal(best[f"network.{key}"], tensor) for key, tensor in weights.items())


@pytest.mark.parametrize("count", [1, 2, 9, 100])
def test_the_decay_of_the_average_grows_during_the_first_steps(count: int):
    """Compare with the formula of tf.train.ExponentialMovingAverage: min(decay, (1 + n) / (10 + n)) after n updates."""
    network, decay = nn.Linear(2, 1), 0.6
    average = WeightAverage(network, decay)
    expected = 0.0
    for n in range(count):
        with torch.no_grad():
            network.weight.fill_(n)
        average.update(network)
        kept = min(decay, (1 + n) / (10 + n)) if n else 0.0  # the first update copies
        expected = kept * expected + (1 - kept) * n
    assert average.module.weight.tolist()[0] == pytest.approx([expected] * 2)


def test_after_the_warm_up_the_average_is_that_of_torch():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    average = WeightAverage(network, 0.0)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.0), use_buffers=True)
    average.updates, average.decay = 10**6, 0.9
    theirs.n_averaged.fill_(1)
    theirs.multi_avg_fn = get_ema_multi_avg_fn(0.9)
    for _ in range(5):
        network(torch.randn(2, 3, 5, 5)).sum().backward()
        with torch.no_grad():
            for weight in network.parameters():
                weight -= 0.1 * weight.grad
        average.update(network)
        theirs.update_parameters(network)
    for key, value in theirs.module.state_dict().items():
        assert torch.equal(average.module.state_dict()[key], value), key


def test_the_loss_decides_between_epochs_of_the_same_accuracy(run: Callable[..., Result]):
    result = run(tiny("optimizer sgd lr=1e-3"), epochs=6, data=Setting.of(FashionMini(train=500, val=8)))
    rows = list(csv.DictReader((result.folder / "metrics.csv").open()))
    scores = [(float(row["val_acc"]), -float(row["val_loss"])) for row in rows if row["val_acc"]]
    assert len({accuracy for accuracy, _ in scores}) < len({*scores})  # the accuracies are equal, the losses are not
    assert result.values["best_epoch"] == 1 + scores.index(max(scores))


def test_early_stop(run: Callable[..., Result]):
    result = run(tiny("optimizer sgd lr=1e-9; early_stop 1"), epochs=9)
    assert result.values["epochs"] < 9
    with pytest.raises(CnnspecError) as error:
        run(tiny("optimizer sgd; early_stop 1"), data=Setting.of(FashionMini(val=0)))
    assert code(error) == "E0511"


def test_validating_less_often_changes_nothing_else(run: Callable[..., Result]):
    recipe = "optimizer sgd lr=0.1 momentum=0.9; schedule onecycle"
    whole, part = (run(tiny(f"{recipe}; val_every {count}"), epochs=5) for count in (1, 3))
    one, two = (
        [row for row in csv.DictReader((result.folder / "metrics.csv").open()) if row["train_loss"]]
        for result in (whole, part)
    )
    validated = [row["epoch"] for row in two if row["val_acc"]]
    assert validated == ["3", "5"]
    blank = [row if row["epoch"] in validated else {**row, "val_loss": "", "val_acc": ""} for row in one]
    assert two == blank
    assert all(
        torch.equal(checkpoint(whole)["state_dict"][key], value)
        for key, value in checkpoint(part)["state_dict"].items()
    )
    scores = {int(row["epoch"]): (float(row["val_acc"]), -float(row["val_loss"])) for row in two if row["val_acc"]}
    assert part.values["best_epoch"] == max(scores, key=scores.__getitem__)
    assert part.values["val_acc"] == scores[part.values["best_epoch"]][0]


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=14),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(1, 6)),
)
def test_early_stop_counts_epochs_and_is_decided_when_they_are_validated(
    scores: list[int], every: int, patience: int | None
):
    graph = tiny()
    changed = {"epochs": len(scores), "val_every": every, "early_stop": patience}
    task = Task(graph, nn.Linear(1, 1), graph.recipe.model_copy(update=changed), 1)
    best, at = -1.0, 0  # what a reader of the documentation expects
    ends = len(scores)
    for epoch, score in enumerate(scores, 1):
        if epoch % every and epoch < len(scores):
            continue
        if score > best:
            best, at = score, epoch
        elif patience is not None and epoch - at >= patience:
            ends = epoch
            break
    for epoch, score in enumerate(scores, 1):
        task.progress.step = epoch
        due = task._validation_is_due
        assert due == (epoch % every == 0 or epoch == len(scores))
        task._note_score({"val_acc": float(score), "val_loss": 0.0} if due else {})
        if task.progress.stopped_early:
            break
    assert task.progress.step == ends
    assert (task.progress.best_epoch, task.progress.best_score) == (at, best)


# --- errors ---------------------------------------------------------------------------------------


def test_a_diverged_run_ends_with_a_diagnostic(run: Callable[..., Result], tmp_path: Path):
    with pytest.raises(CnnspecError) as error:
        run(loads(NETWORK.replace(" | bn", "").replace("RECIPE", "optimizer sgd lr=1e9"), name="tiny.cnn"))
    assert code(error) == "E0509"
    folder = tmp_path / "runs" / "tiny" / "1"
    assert json.loads((folder / "result.json").read_text())["state"] == "failed"
    assert not (folder / "checkpoints" / "best.ckpt").exists()


def test_a_batch_in_which_no_image_counts_is_an_error_that_says_so(run: Callable[..., Result]):
    text = NETWORK.replace("RECIPE", f"loss cross_entropy class_weights={[1, *[0] * 9]}")
    with pytest.raises(CnnspecError) as error:
        run(loads(text, name="tiny.cnn"), batch=2)
    assert code(error) == "E0509"
    assert "`class_weights` is 0" in error.value.diagnostics[0].notes[0]


@pytest.mark.parametrize(
    ("batch", "accumulate", "fits"), [(1, 1, None), (8, 8, None), (9, 7, None), (9, 5, None), (4, 1, 1)]
)
def test_batch_norm_on_a_single_value_is_an_error_before_the_run(
    batch: int,
    accumulate: int,
    fits: int | None,
    run: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    if fits is not None:
        monkeypatch.setattr("cnnspec.training.runs.train.images_that_fit", lambda *_, **__: fits)
    text = NETWORK.replace("RECIPE", f"optimizer sgd lr=0.1; accumulate {accumulate}")
    graph = loads(text.replace("flatten |", "flatten | bn |"), name="tiny.cnn")
    with pytest.raises(CnnspecError) as error:
        run(graph, batch=batch)
    assert code(error) == "E0520"
    assert "`head.3`" in error.value.diagnostics[0].message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("images", range(1, 14))
@pytest.mark.parametrize("parts", range(1, 14))
def test_the_parts_of_a_batch_are_those_of_torch(images: int, parts: int):
    sizes = [len(part) for part in torch.zeros(images).tensor_split(min(parts, images))]
    assert sorted(part_sizes(images, min(parts, images))) == sorted(sizes)
    network = loads(NETWORK.replace("RECIPE", "").replace("flatten |", "flatten | bn |"))
    is_single = min(sizes) == 1
    with pytest.raises(CnnspecError) if is_single else nullcontext():
        check_parts(network, images, parts)


def test_a_batch_is_not_divided_into_parts_of_one_image(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    """A step that runs out of memory ends the run instead of failing in batch normalization."""

    def fail(*_: Any) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(Task, "_add_gradients", fail)
    graph = loads(NETWORK.replace("RECIPE", "").replace("flatten |", "flatten | bn |"), name="tiny.cnn")
    with pytest.raises(CnnspecError) as error:
        run(graph, batch=4)
    assert code(error) == "E0513"


def test_a_run_that_cannot_start_writes_nothing(run: Callable[..., Result], tmp_path: Path):
    faults: list[tuple[Graph, dict[str, Any], str]] = [
        (tiny(), {"data": Setting.of(Cifar100())}, "E0501"),
        (tiny(), {"data": Setting.of(Folder(path=str(tmp_path / "none")))}, "E0503"),
        (tiny(), {"data": Setting(name="mnist", args={"val": 5000})}, "E0502"),
        (tiny(), {"accelerator": "abacus"}, "E0510"),
        (tiny(), {"precision": "7-bit"}, "E0510"),
        (tiny(), {"strategy": "luck"}, "E0510"),
        (tiny(), {"data": Setting.of(FashionMini(val=6000))}, "E0511"),
        (tiny(), {"resume": True}, "E0506"),
        (loads("network map\ninput 1x28x28\nconv 3x3 10\n", name="map.cnn"), {}, "E0508"),
    ]
    if not torch.cuda.is_available():
        faults.append((tiny(), {"accelerator": "gpu"}, "E0510"))
    for graph, options, expected in faults:
        with pytest.raises(CnnspecError) as error:
            run(graph, **options)
        assert code(error) == expected
        assert list(tmp_path.iterdir()) == [], options


def test_an_output_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CnnspecError) as error:
        train(tiny(), TrainOptions(out=tmp_path / "file"))
    assert code(error) == "E0506"


# --- interruption ---------------------------------------------------------------------------------


RECIPES = [
    "optimizer sgd lr=0.1 momentum=0.9; schedule multistep at=[1, 2]",
    "optimizer adamw; schedule cosine; ema 0.9; early_stop 5; val_every 2",
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("epoch", "step"), [(0, 2), (1, 0), (1, 7), (1, STEPS - 1), (2, STEPS - 1)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, recipe: str, epoch: int, step: int
):
    whole = run(tiny(recipe), seed=3)
    out = io.StringIO()
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        stop_at(patch, epoch, step, signal.SIGINT)
        stopped = run(tiny(recipe), seed=3, console=Console(file=out, width=200), resume_command="the command")
    assert (stopped.state, stopped.exit_code) == ("interrupted", 130)
    assert json.loads((stopped.folder / "result.json").read_text())["state"] == "interrupted"
    assert "resume with `the command`" in out.getvalue()
    assert signal.getsignal(signal.SIGINT) is before
    resumed = run(tiny(recipe), resume=True)
    assert resumed.folder == stopped.folder
    assert resumed.state == "finished"
    first, second = checkpoint(whole), checkpoint(resumed)
    assert first["global_step"] == second["global_step"] == 3 * STEPS
    assert all(torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in first["state_dict"])
    for name in ("val_acc", "test_acc", "test_loss", "best_epoch", "recipe"):
        assert whole.values[name] == resumed.values[name]
    for name in ("metrics.csv", "metrics.jsonl"):
        assert (whole.folder / name).read_bytes() == (resumed.folder / name).read_bytes()
    with pytest.raises(CnnspecError) as error:
        run(tiny(recipe), resume=True)
    assert code(error) == "E0506"


def test_sigterm_stops_cleanly_too(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    stop_at(monkeypatch, 1, 3)
    stopped = run(tiny())
    assert (stopped.state, stopped.exit_code) == ("interrupted", 143)
    assert checkpoint(stopped)["global_step"] == STEPS + 4


def test_runs_that_cannot_be_resumed(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 1, 3, signal.SIGINT)
        stopped = run(tiny())
    changed = loads(NETWORK.replace("7x7 4", "7x7 6").replace("RECIPE", ""), name="tiny.cnn")
    for graph, options in ((changed, {}), (tiny(), {"batch": 100}), (tiny(), {"data": Setting.of(FashionMini())})):
        with pytest.raises(CnnspecError) as error:
            run(graph, resume=True, **options)
        assert code(error) == "E0506"
    for name in ("last.ckpt", "previous.ckpt"):
        (stopped.folder / "checkpoints" / name).write_bytes(b"half")
    with pytest.raises(CnnspecError) as error:
        run(tiny(), resume=True)
    assert code(error) == "E0506"
    assert run(tiny(), epochs=1).folder.name == "2"


def test_runs_of_comparisons_and_sweeps_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folders = ["runs/a/2", "runs/a/10", "comparisons/a-b/runs/b/1", "sweeps/a/trials/3/a/1"]
    for folder in folders:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "result.json").write_text("{}")
    for place, expected in (
        ("runs", folders[:2]),
        ("comparisons", folders[2:3]),
        ("comparisons/a-b", folders[2:3]),
        ("comparisons/a-b/runs", folders[2:3]),
        ("sweeps", folders[3:]),
        ("sweeps/a", folders[3:]),
    ):
        assert [found["folder"] for found in list_runs(Path(place))] == expected


def test_a_run_is_resumed_by_its_folder_or_number(run: Callable[..., Result], tmp_path: Path):
    spec = tmp_path / "tiny.cnn"
    spec.write_text(NETWORK.replace("RECIPE", "optimizer sgd lr=0.1"))
    stopped: list[Result] = []
    for seed in (1, 2, 3):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, 0, 2)
            stopped.append(run(load(spec), seed=seed, epochs=1))
    command = [sys.executable, "-m", "cnnspec", "train", str(spec), "--out", str(tmp_path / "runs"), "--no-plots"]
    done = subprocess.run([*command, "--resume-from", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run(load(spec), resume=stopped[0].folder)
    results = [json.loads((result.folder / "result.json").read_text()) for result in stopped]
    assert [result["state"] for result in results] == ["finished", "finished", "interrupted"]
    assert [result["seed"] for result in results] == [1, 2, 3]
    for path, reason in ((stopped[1].folder, "the run is finished"), (tmp_path / "x", "not the folder of a run")):
        with pytest.raises(CnnspecError, match=reason) as error:
            run(load(spec), resume=path)
        assert code(error) == "E0506"


def test_a_killed_run_resumes_but_not_while_it_is_running(run: Callable[..., Result], tmp_path: Path):
    graph = tiny()
    (tmp_path / "tiny.cnn").write_text(graph.text)
    script = """if True:
        import os, sys, time
        from pathlib import Path
        from cnnspec import load
        from cnnspec.training import TrainOptions, train
        from cnnspec.training.data.batches import EpochBatches
        batches = EpochBatches.__iter__
        def stall(self):
            for number, batch in enumerate(batches(self), self.skip):
                if self.seed is not None and (self.epoch, number) == (1, 5):
                    print("here", flush=True)
                    time.sleep(600)
                yield batch
        EpochBatches.__iter__ = stall
        train(load(sys.argv[1]), TrainOptions(out=Path(sys.argv[2])))
    """
    arguments = [sys.executable, "-c", script, str(tmp_path / "tiny.cnn"), str(tmp_path / "runs")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        assert any("here" in line for line in process.stdout)
        with pytest.raises(CnnspecError, match="still running") as error:
            run(graph, resume=True)
        assert code(error) == "E0506"
        process.kill()
    resumed = run(graph, resume=True)
    assert resumed.state == "finished"
    whole = run(graph)
    first, second = checkpoint(whole)["state_dict"], checkpoint(resumed)["state_dict"]
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_package_imports_torch_on_first_use():
    script = """if True:
        import sys, cnnspec.training
        assert 'torch' not in sys.modules
        cnnspec.training.train
        assert 'torch' in sys.modules
    """
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_the_extra_the_error_names_the_install_command():
    script = """if True:
        import sys
        sys.modules["pytorch_lightning"] = None
        import cnnspec.training
        try:
            cnnspec.training.train
        except Exception as error:
            print(error)
    """
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert "E0507" in output
    assert "cnnspec[train]" in output


# --- recipes --------------------------------------------------------------------------------------

CHOICES = [
    "optimizer muon; schedule linear warmup=0.5",
    "optimizer nadam; schedule constant warmup=1; decay weights",
    "optimizer radam weight_decay=0.1; decay weights; clip 1",
    "optimizer adamax; schedule step every=1 warmup=0.5",
    "optimizer adagrad; mixup 0.2",
    "optimizer adadelta; cutmix 1",
    "optimizer rmsprop; mixup 0.2; cutmix 1; accumulate 2",
]


@pytest.mark.parametrize("recipe", CHOICES)
def test_every_recipe_trains_and_resumes(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    graph = tiny(recipe)
    whole = run(graph, epochs=1)
    with monkeypatch.context() as patch:
        stop_at(patch, 0, 6, signal.SIGINT)
        run(graph, epochs=1)
    resumed = run(graph, resume=True)
    first, second = checkpoint(whole), checkpoint(resumed)
    assert all(torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in first["state_dict"])
    assert (whole.folder / "metrics.csv").read_bytes() == (resumed.folder / "metrics.csv").read_bytes()
    losses = [row["train_loss"] for row in read_journal(whole.folder) if "train_loss" in row]
    assert 1 < losses[0] < 2.6


def test_a_time_limit_ends_the_run_with_a_result(run: Callable[..., Result]):
    result = run(tiny("minutes 1e-6"))
    assert (result.state, result.values["steps"], result.values["best_epoch"]) == ("finished", 1, 1)
    assert result.values["test_acc"] is not None


def test_clipping_bounds_the_gradients(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch):
    norms: list[float] = []
    clip = nn.utils.clip_grad_norm_

    def measured(weights: Any, most: float) -> Any:
        weights = list(weights)
        found = clip(weights, most)
        norms.append(float(torch.cat([weight.grad.flatten() for weight in weights]).norm()))
        return found

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", measured)
    run(tiny("optimizer sgd lr=0.1; clip 0.01"), epochs=1)
    assert norms == pytest.approx([0.01] * STEPS, rel=1e-3)


# --- plots, lists, plans, machine settings --------------------------------------------------------


def test_plots_of_a_run(run: Callable[..., Result]):
    from PIL import Image

    text = NETWORK.replace("hflip | random_crop pad=2", "trivialaugment | cutout 4").replace("RECIPE", "")
    result = run(loads(text, name="tiny.cnn"), epochs=2, plots=True)
    for name in ("augmentation.png", "curves.png", "confusion.png", "misclassified.png", "reliability.png"):
        with Image.open(result.folder / name) as image:
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20
    assert (result.folder / "curves.svg").read_text().startswith("<?xml")
    with (result.folder / "confusion.csv").open(newline="") as file:
        counts = [[int(count) for count in row[1:]] for row in list(csv.reader(file))[1:]]
    assert [sum(row) for row in counts] == [100] * 10
    assert sum(counts[k][k] for k in range(10)) / 1000 == result.values["test_acc"]


def test_runs_are_listed_with_their_state(run: Callable[..., Result], tmp_path: Path):
    assert list_runs(tmp_path / "runs") == []
    finished = run(tiny(), epochs=1)
    for state in ("running", "failed"):
        folder = RunFolder.create(tmp_path / "runs", tiny())
        folder.write_result({**finished.values, "state": state})
        if state == "running":
            assert list_runs(tmp_path / "runs")[1]["state"] == "running"
        folder.release()
    found = list_runs(tmp_path / "runs")
    assert [entry["state"] for entry in found] == ["finished", "killed", "failed"]
    assert found[0]["test_acc"] == finished.values["test_acc"]


@pytest.mark.parametrize("name", ["result.json", "model.json"])
def test_files_of_another_format_version_are_an_error(tmp_path: Path, name: str):
    graph = tiny()
    folder = RunFolder.create(tmp_path, graph)
    folder.write_result({"state": "interrupted", "recipe": graph.recipe.model_dump(mode="json")})
    folder.release()
    assert len(stored_runs(tmp_path)) == 1
    path = folder.path / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(CnnspecError, match="expected format version 1, found format version 2") as error:
        RunFolder.find(tmp_path, graph)
    assert (code(error), error.value.diagnostics[0].file) == ("E0506", str(path))
    if name == "result.json":
        assert list_runs(tmp_path)[0]["state"] == "unsupported"
        skipped: list[CnnspecError] = []
        assert stored_runs(tmp_path, skipped.append) == []
        assert "unsupported file format" in str(skipped[0])


def test_a_plan_is_what_a_run_uses_and_writes_nothing(
    run: Callable[..., Result],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
):
    from cnnspec.training.runs.plan import plan, plan_lines

    monkeypatch.setenv("CNNSPEC_CACHE", str(tmp_path_factory.mktemp("cache")))  # other tests have measured the network
    seconds = {"channels_last": 1.0, "contiguous": 0.5}
    monkeypatch.setattr(autotune, "_time_step", lambda *args: seconds[args[-1]])
    graph = tiny("optimizer sgd lr=0.1 momentum=0.9")
    options = TrainOptions(out=tmp_path / "runs", epochs=2, offline=True, threads=1)
    planned = plan(graph, options)
    assert list(tmp_path.iterdir()) == []
    result = run(graph, epochs=2, plots=True)
    origins = {row["entry"]: row["origin"] for row in planned["recipe"]}
    assert (origins["epochs"], origins["optimizer"], origins["seed"]) == ("option", "spec", "default")
    assert planned["files"]["folder"] == str(result.folder)
    assert planned["steps"] == {"epoch": STEPS, "run": result.values["steps"]}
    for name in planned["files"]["names"]:
        assert (result.folder / name).exists(), name
    assert planned["data"]["images"] == {"train": 4000, "val": 2000, "test": 1000}
    again = plan(graph, TrainOptions(out=tmp_path / "runs"))
    assert again["device"]["memory_format"] == result.values["machine"]["memory_format"] == "contiguous"
    assert again["files"]["folder"].endswith("2")
    text = "\n".join(plan_lines(planned))
    assert "32 in total" in text
    missing = plan(load("resnet20", lr=0.05), TrainOptions(data_dir=tmp_path / "none"))
    origins = {row["entry"]: row["origin"] for row in missing["recipe"]}
    assert (origins["optimizer"], origins["schedule"], origins["decay"]) == ("--set", "spec", "default")
    assert "will be downloaded" in missing["data"]["state"]
    assert not (tmp_path / "none").exists()


def test_both_memory_formats_compute_the_same(run: Callable[..., Result]):
    first, second = (
        checkpoint(run(tiny(), epochs=1, memory_format=name, threads=1))["state_dict"]
        for name in ("contiguous", "channels_last")
    )
    assert all(torch.allclose(first[key].float(), second[key].float(), atol=1e-4) for key in first)


def test_an_unknown_logger_is_an_error(run: Callable[..., Result], tmp_path: Path):
    with pytest.raises(CnnspecError) as error:
        run(tiny(), log=("abacus",))
    assert code(error) == "E0510"
    assert not (tmp_path / "runs").exists()


def test_images_are_moved_to_the_device_if_they_fit(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, output: io.StringIO
):
    from cnnspec.training.runs import placement as planning

    graph, device = tiny(), torch.device("meta")
    data = load_data(graph, graph.recipe.data, Path())
    needed = planning.memory(graph, graph.recipe, data.nbytes)["total"]
    assert data.nbytes == 7000 * 28 * 28 < needed
    for free, there in ((int(needed / 0.8) + 1, "meta"), (needed, "cpu"), (0, "cpu")):
        monkeypatch.setattr(planning, "free_memory", lambda device, free=free: free)
        place = planning.choose_placement(data, "auto", graph, graph.recipe, device)
        found = planning.place_data(data, place, device)
        assert {part.device.type for part in (found.train, found.val, found.test) if part is not None} == {there}
    assert data.train.device.type == "cpu"
    first = run(graph)
    assert "images in the memory of" not in output.getvalue()
    monkeypatch.setattr(planning, "free_memory", lambda device: 1 << 40)
    second = run(graph)
    assert "images in the memory of cpu" in output.getvalue()
    one, two = (checkpoint(result)["state_dict"] for result in (first, second))
    assert all(torch.equal(one[key], two[key]) for key in one)
