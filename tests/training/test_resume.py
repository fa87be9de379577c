"""Test that a resumed run notices every difference, and uses what was accepted."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import shlex
import shutil
import signal
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.batches import stop_at
from harness.images import write_images
from harness.runs import TINY, code
from typer.testing import CliRunner

import cnnspec.training
from cnnspec import CnnspecError, Graph, build, load, loads
from cnnspec.cli.app import app
from cnnspec.recipe import (
    CHOICES,
    OPTIMIZERS,
    ORIGINS,
    PIPELINES,
    SCHEDULES,
    Cifar10,
    FashionMini,
    Folder,
    Recipe,
    Setting,
)
from cnnspec.training import Result, evaluate, train
from cnnspec.training.data import identity
from cnnspec.training.data.datasets import load_data
from cnnspec.training.data.identity import FILE, Inventory, differences
from cnnspec.training.loop.checkpoints import read_about
from cnnspec.training.loop.journal import read_journal
from cnnspec.training.loop.machine import versions
from cnnspec.training.loop.optimizers import optimizer_for
from cnnspec.training.loop.restore import convert, restore_optimizer, run_facts
from cnnspec.training.runs.folder import RunFolder
from cnnspec.training.runs.options import REQUESTS, TrainOptions
from cnnspec.training.runs.resume import (
    INITIAL_WEIGHTS,
    MACHINE_OPTIONS,
    NOT_COMPARED,
    RECIPE_OPTIONS,
    recipe_changes,
)

SPEC = (
    TINY
    + """train {
    data      fashion_mini val=100 train=200 test=100
    optimizer sgd lr=0.1 momentum=0.9
    schedule  multistep at=[1] warmup=0.5
    batch     50
    epochs    3
}
"""
)
STEPS = 4
pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(*changes: tuple[str, str], **params: Any) -> Graph:
    """Return the network with parts of its text replaced, as after an edit."""
    text = SPEC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return loads(text, name="tiny.cnn", **params)


@pytest.fixture
def stopped(run: Callable[..., Result]) -> Callable[..., Result]:
    """Train until the third step of the second epoch."""

    def train(graph: Graph | None = None, step: int = 2, **options: Any) -> Result:
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, 1, step, signal.SIGINT)
            result = run(graph or tiny(), **options)
        assert result.state == "interrupted"
        return result

    return train


def changes_of(error: pytest.ExceptionInfo[CnnspecError]) -> list[str]:
    assert code(error) == "E0506"
    diagnostic = error.value.diagnostics[0]
    assert "has" in diagnostic.message or "have changed since it started" in diagnostic.message
    return list(diagnostic.notes)


def rates(result: Result) -> dict[int, float]:
    return {row["step"]: row["lr"] for row in read_journal(result.folder) if "lr" in row}


# --- which settings are compared ------------------------------------------------------------------


def test_every_option_is_compared_or_cannot_change_the_result():
    groups = [NOT_COMPARED, RECIPE_OPTIONS, INITIAL_WEIGHTS, MACHINE_OPTIONS, {*REQUESTS} - RECIPE_OPTIONS]
    assert sorted(name for group in groups for name in group) == sorted(
        field.name for field in dataclasses.fields(TrainOptions)
    )


def other(value: Any) -> Any:
    """Return another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case tuple():
            return (*value, 7)
        case str():
            return value + "x"
        case _:
            return 3


def settings() -> Iterator[tuple[str, Setting]]:
    """Yield every choice of the recipe with values for its required arguments."""
    for entry, table in CHOICES.items():
        for kind in table.values():
            required: dict[str, Any] = {
                "mean": (0.5,),
                "std": (0.5,),
                "path": "a",
                "by": 0.1,
                "degrees": 3.0,
                "side": 2,
                "at": (1,),
                "every": 1,
                "modules": ("a",),
                "lr": 0.1,
            }
            yield entry, Setting.of(kind(**{name: required[name] for name in kind.required}))


@pytest.mark.parametrize(("entry", "setting"), settings(), ids=lambda value: getattr(value, "name", value))
def test_every_argument_of_every_choice_is_compared(entry: str, setting: Setting):
    def recipe(setting: Setting) -> Recipe:
        return Recipe().model_copy(update={entry: (setting,) if entry in PIPELINES else setting})

    base = recipe(setting)
    assert recipe_changes(base, Recipe.model_validate(json.loads(base.model_dump_json()))) == []
    for name, value in setting.args.items():
        changed = recipe(setting.model_copy(update={"args": setting.args | {name: other(value)}}))
        found = recipe_changes(base, changed)
        if (setting.name, name) == ("folder", "path"):  # a moved folder is the same
            assert found == []
        else:
            assert [change.name for change in found] == [entry if entry in PIPELINES else f"{entry}.{name}"]
            assert found[0].was != found[0].now


def test_every_entry_of_the_recipe_is_compared():
    base = Recipe()
    for name in Recipe.model_fields:
        if name in CHOICES:
            choices = (setting for entry, setting in settings() if entry == name and setting.name not in str(base))
            value: Any = next(choices, None)
            if value is None:  # `resize` is the only choice; its arguments are compared above
                continue
            value = (value,) if name in PIPELINES else value
        else:
            value = other(getattr(base, name))
        found = recipe_changes(base, base.model_copy(update={name: value}))
        assert [change.name for change in found] == ([] if name in ORIGINS else [name])


# --- differences are named ------------------------------------------------------------------------

Case = tuple[Graph, dict[str, Any], list[str]]


def cases() -> dict[str, Case]:
    old = "sgd lr=0.1 momentum=0.9"
    data = {"val": 100, "train": 200, "test": 100}
    return {
        "set": (tiny(**{"optimizer.lr": 0.5}), {}, ["`optimizer.lr` was 0.1, is 0.5"]),
        "edited rate": (tiny(("lr=0.1", "lr=0.5")), {}, ["`optimizer.lr` was 0.1, is 0.5"]),
        "optimizer": (
            tiny((old, "adamw")),
            {},
            [f"`optimizer` was {old} weight_decay=0, is adamw lr=0.001 weight_decay=0.01 beta1=0.9 beta2=0.999"],
        ),
        "several": (
            tiny(("batch     50", "batch     40; ema 0.5"), ("warmup=0.5", "warmup=1")),
            {"seed": 7},
            [
                "`schedule.warmup` was 0.5, is 1", "`batch` was 50, is 40", "`seed` was 42, is 7",
                "`ema` was none, is 0.5",
            ],
        ),
        "batch": (tiny(), {"batch": 40}, ["`batch` was 50, is 40"]),
        "epochs": (tiny(), {"epochs": 6}, ["`epochs` was 3, is 6", "`planned` was none, is 3"]),
        "precision": (tiny(), {"precision": "bf16"}, ["`precision` was auto, is bf16"]),
        "Lightning's precision": (tiny(), {"precision": "64-true"}, ["`precision` was 32-true, is 64-true"]),
        "deterministic": (tiny(), {"deterministic": True}, ["`deterministic` was False, is True"]),
        "threads": (tiny(), {"threads": 2}, ["`threads` was 1, is 2"]),
        "memory": (tiny(), {"memory_format": "contiguous"}, ["`memory_format` was channels_last, is contiguous"]),
        "data": (
            tiny(),
            {"data": Setting.of(FashionMini(**{**data, "test": 90}))},
            ["`data.test` was 100, is 90"],
        ),
        "activation": (tiny(("relu", "gelu")), {}, ["`stem.2` was relu -> [N, 4, 4, 4], is gelu -> [N, 4, 4, 4]"]),
        "dropout": (
            tiny(("dropout 0.1", "dropout 0.2")),
            {},
            ["`head.0` was dropout p=0.1 -> [N, 4, 4, 4], is dropout p=0.2 -> [N, 4, 4, 4]"],
        ),
        "layer": (tiny(("| relu", "| relu | relu")), {}, ["`stem.3` was added: relu -> [N, 4, 4, 4]"]),
        "weights": (tiny(), {"weights": "other.pt"}, ["`weights` was random, is other.pt"]),
    }  # fmt: skip


def test_every_difference_is_named_in_one_error(run: Callable[..., Result], stopped: Callable[..., Result]):
    result = stopped(memory_format="channels_last", threads=1)
    before = {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file() and path.name != ".lock"}
    for name, (graph, options, expected) in cases().items():
        with pytest.raises(CnnspecError) as error:
            run(graph, resume=True, **options)
        assert changes_of(error) == expected, name
    after = {path: path.read_bytes() for path in result.folder.rglob("*") if path.is_file() and path.name != ".lock"}
    assert before == after
    with pytest.raises(CnnspecError) as error:
        run(tiny(), resume=True, weights="other.pt", accept_changes=True)
    assert "initial weights" in str(error.value)


def test_options_that_cannot_change_the_result_are_not_differences(
    run: Callable[..., Result], stopped: Callable[..., Result], output: Any, tmp_path: Path
):
    whole = run(tiny())
    stopped()
    edited = tiny(("stem conv", "# a comment\nstem conv"))
    resumed = run(
        edited, resume=True, save_every=0, brief=True, allocator="default", log=("tensorboard",),
        resume_command="x", watch=lambda epoch, metrics: False,
    )  # fmt: skip
    assert resumed.values["changes"] == []
    assert (
        "the text of `spec.cnn` has changed since the run started, but not the network and the recipe"
        in output.getvalue()
    )
    assert (whole.folder / "metrics.csv").read_bytes() == (resumed.folder / "metrics.csv").read_bytes()


def test_settings_that_are_not_repeated_keep_their_value(run: Callable[..., Result], stopped: Callable[..., Result]):
    given: dict[str, Any] = {"seed": 3, "epochs": 2, "batch": 40, "precision": "bf16-true", "threads": 1}
    graph = tiny(**{"optimizer.lr": 0.05})
    whole = run(graph, **given)
    stopped(graph, **given)
    resumed = run(tiny(), resume=True)
    assert (resumed.values["precision"], resumed.values["recipe"]["batch"]) == ("bf16-true", 40)
    assert resumed.values["recipe"] == whole.values["recipe"]
    assert (whole.folder / "metrics.csv").read_bytes() == (resumed.folder / "metrics.csv").read_bytes()
    # but an edit of the spec shows that the value of `--set` is missing
    stopped(graph, **given)
    with pytest.raises(CnnspecError) as error:
        run(tiny(("epochs    3", "epochs    3\n    clip 1")), resume=True)
    assert changes_of(error) == ["`optimizer.lr` was 0.05, is 0.1", "`clip` was none, is 1"]


@pytest.mark.parametrize("given", [{}, {"normalize": "half"}], ids=["default", "--set"])
def test_the_origins_of_the_preprocessing_keep_their_value(
    run: Callable[..., Result], stopped: Callable[..., Result], given: dict[str, str]
):
    whole = run(tiny(**given))
    stopped(tiny(**given))
    assert run(tiny(), resume=True).values["preprocessing"] == whole.values["preprocessing"]


def test_an_edited_file_that_the_spec_uses_is_noticed(run: Callable[..., Result], tmp_path: Path):
    (tmp_path / "base.cnn").write_text(SPEC.replace("tiny", "base"))
    (tmp_path / "child.cnn").write_text("network child\nextends base\n")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 1, 2, signal.SIGINT)
        first = run(load(tmp_path / "child.cnn"))
    assert sorted(first.values["spec"]["files"]) == ["base.cnn"]
    for old, new, expected in (
        ("lr=0.1", "lr=0.3", "`optimizer.lr` was 0.1, is 0.3"),
        ("relu", "elu", "`stem.2` was relu -> [N, 4, 4, 4], is elu -> [N, 4, 4, 4]"),
    ):
        (tmp_path / "base.cnn").write_text(SPEC.replace("tiny", "base").replace(old, new))
        with pytest.raises(CnnspecError) as error:
            run(load(tmp_path / "child.cnn"), resume=True)
        assert changes_of(error) == [expected]


def test_other_versions_and_devices_are_noticed(run: Callable[..., Result], stopped: Callable[..., Result]):
    result = stopped()
    path = result.folder / "result.json"
    values = json.loads(path.read_text())
    values |= {
        "accelerator": "cuda",
        "devices": 4,
        "versions": {**values["versions"], "torch": "2.9.0", "python": "3.0"},
    }
    path.write_text(json.dumps(values))
    with pytest.raises(CnnspecError) as error:
        run(tiny(), resume=True)
    assert changes_of(error) == [
        f"`torch version` was 2.9.0, is {versions()['torch']}",
        "`accelerator` was cuda, is cpu",
        "`devices` was 4, is 1",
    ]


def test_the_command_line_names_and_accepts_changes(
    stopped: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stopped()
    (tmp_path / "tiny.cnn").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    command = ["build", "tiny.cnn", "--train", "--resume", "--set", "lr=0.5", "--no-plots"]
    with pytest.raises(CnnspecError) as error:
        app(command, standalone_mode=False)
    assert changes_of(error) == ["`optimizer.lr` was 0.1, is 0.5"]
    assert "--accept-changes" in str(error.value)
    assert app([*command, "--accept-changes"], standalone_mode=False) == 0
    assert "accepted change: `optimizer.lr` was 0.1, is 0.5" in capsys.readouterr().out


# --- accepted changes are used --------------------------------------------------------------------


def test_an_accepted_rate_is_used_and_recorded(run: Callable[..., Result], stopped: Callable[..., Result]):
    stopped()
    graph = tiny(("lr=0.1", "lr=0.5"))
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 2, 1, signal.SIGINT)
        run(graph, resume=True, accept_changes=True)
    result = run(graph, resume=True)  # it is the rate of the run now
    assert rates(result) == pytest.approx({4: 0.1, 8: 0.05, 12: 0.05})
    entry = {"step": 7, "changes": [{"name": "optimizer.lr", "was": "0.1", "now": "0.5"}]}
    assert result.values["changes"] == [entry]
    assert [row for row in read_journal(result.folder) if "changes" in row] == [entry]
    assert result.values["recipe"]["optimizer"]["args"]["lr"] == 0.5
    assert "lr=0.5" in (result.folder / "spec.cnn").read_text()


def test_all_changes_but_the_initial_weights_can_be_accepted(
    run: Callable[..., Result], stopped: Callable[..., Result], tmp_path: Path
):
    for name, (graph, options, expected) in cases().items():
        if name == "weights":
            continue
        stopped(memory_format="channels_last", threads=1)
        result = run(graph, resume=True, accept_changes=True, **options)
        assert result.state == "finished", name
        assert len(result.values["changes"][0]["changes"]) == len(expected)
        values = result.values
        recipe, machine = values["recipe"], values["machine"]
        stored = RunFolder(result.folder).checkpoints.load()[0]
        assert stored["progress"]["step"] == recipe["epochs"] * (200 // recipe["batch"]), name
        assert machine["threads"] == options.get("threads", 1)
        assert machine["memory_format"] == options.get("memory_format", "channels_last")
        assert recipe["batch"] == options.get("batch", graph.recipe.batch)
        group = stored["optimizer_states"][0]["param_groups"][0]
        assert group["initial_lr"] == graph.recipe.optimizer.args["lr"], name
        assert values["precision"] == {"precision": "bf16-mixed", "Lightning's precision": "64-true"}.get(
            name, "32-true"
        )
        assert stored["run"]["recipe"] == recipe
        # nothing is left to notice
        path = result.folder / "result.json"
        path.write_text(json.dumps({**values, "state": "interrupted"}))
        assert run(graph, resume=True).state == "finished"


def test_a_change_that_the_checkpoint_does_not_fit_is_an_error(
    run: Callable[..., Result], stopped: Callable[..., Result]
):
    result = stopped()
    with pytest.raises(CnnspecError) as error:
        run(tiny(("7x7 4", "7x7 6")), resume=True, accept_changes=True)
    assert code(error) == "E0506"
    assert "`stem.0.weight`" in str(error.value)
    assert "lr=0.1" in (result.folder / "spec.cnn").read_text()
    assert run(tiny(), resume=True).state == "finished"


def test_the_arguments_of_a_restored_optimizer_are_those_of_the_recipe():
    network = build(tiny())
    images = torch.randn(2, 1, 28, 28)
    required: dict[str, Any] = {"at": (1, 2), "every": 1}
    for kind in OPTIMIZERS.values():
        for schedule in SCHEDULES.values():
            plan = Setting.of(schedule(**{name: required[name] for name in schedule.required}))
            old = Recipe(optimizer=Setting.of(kind()), schedule=plan, epochs=3, decay="weights")
            args: dict[str, Any] = {k: v / 2 if isinstance(v, float) else v for k, v in old.optimizer.args.items()}
            new = old.model_copy(update={"optimizer": Setting(name=kind.name, args=args), "label_smoothing": 0.1})
            optimizer, schedule_ = optimizer_for(network, old, STEPS)
            network(images).square().mean().backward()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for _ in range(6):
                    optimizer.step()
                    schedule_.step()
            state = {
                "optimizer_states": [optimizer.state_dict()], "run": run_facts(old, STEPS, None), "state_dict": {},
                "progress": {"step": 6, "validated_step": 4, "epochs_without_improvement": 0},
            }  # fmt: skip
            log: list[str] = []
            for recipe in (old, new):
                restored, plan_ = optimizer_for(network, recipe, STEPS)
                restore_optimizer(restored, plan_, convert(state, recipe, run_facts(recipe, STEPS, None), log.append))
                fresh, stepped = optimizer_for(network, recipe, STEPS)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    for _ in range(6):
                        stepped.step()
                assert restored.state_dict()["param_groups"] == fresh.state_dict()["param_groups"], (kind, schedule)
                assert plan_.last_epoch == 6
                saved, kept = optimizer.state_dict()["state"], restored.state_dict()["state"]
                assert not log
                assert str(saved) == str(kept)


@pytest.mark.parametrize(
    ("step", "batch", "expected"),
    [(7, 100, (5, 4)), (7, 25, (14, 8)), (4, 100, (2, 2)), (7, 150, (4, 3)), (2, 30, (3, 0))],
)
def test_steps_are_converted_to_another_batch(step: int, batch: int, expected: tuple[int, int]):
    old = Recipe(batch=50, epochs=3)
    new = old.model_copy(update={"batch": batch})
    steps = 200 // batch
    state = {
        "run": run_facts(old, STEPS, None), "state_dict": {}, "optimizer_states": [],
        "progress": {"step": step, "validated_step": step // 4 * 4, "epochs_without_improvement": 0},
    }  # fmt: skip
    found = convert(state, new, run_facts(new, steps, None), print)["progress"]
    epochs, rest = divmod(step, STEPS)
    assert found["step"] == epochs * steps + rest * 50 // batch
    assert found["validated_step"] == epochs * steps


COMMANDS = [
    ("train tiny.cnn", "train tiny.cnn --resume"),
    ("build --train tiny.cnn --seed 3", "build --train tiny.cnn --seed 3 --resume"),
    ("train tiny.cnn --set lr=0.1 --out 'my runs'", "train tiny.cnn --set lr=0.1 --out 'my runs' --resume"),
    ("train --epochs 1 -- tiny.cnn", "train --epochs 1 --resume -- tiny.cnn"),
    ("train tiny.cnn --data folder:.", "train tiny.cnn --data folder:. --resume"),
    ("train tiny.cnn --resume --accept-changes", "train tiny.cnn --resume --accept-changes"),
    ("build tiny.cnn --train --resume-from 1", "build tiny.cnn --train --resume-from 1"),
    ("compare tiny.cnn --seeds 1", "compare tiny.cnn --seeds 1"),
]


@pytest.mark.parametrize(("command", "expected"), COMMANDS)
def test_the_command_that_resumes_repeats_what_was_typed(
    command: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given: list[str | None] = []

    def note(*args: Any, options: TrainOptions | None = None, **more: Any) -> Any:
        given.append((options or args[1]).resume_command)
        raise SystemExit(130)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cnnspec.training, "train", note)
    monkeypatch.setattr(cnnspec.training, "compare", note)
    monkeypatch.setattr("signal.signal", lambda *args: None)
    (tmp_path / "tiny.cnn").write_text(SPEC)
    CliRunner().invoke(app, shlex.split(command))
    assert given == [f"cnnspec {expected}"]


# --- data -----------------------------------------------------------------------------------------

FOLDER = SPEC.replace("fashion_mini val=100 train=200 test=100", "folder path=PATH val=0.25").replace(
    "classes 10", "classes 2"
).replace("batch     50", "batch     4")  # fmt: skip


def folder_spec(path: Path) -> Graph:
    spec = path.parent / "tiny.cnn"
    spec.write_text(FOLDER.replace("PATH", f'"{path.name}"'))
    return load(spec)


def edit_remove(folder: Path) -> list[str]:
    (folder / "train/a/3.png").unlink()
    return ["`train/a` had 10 images, now 9", "`train/a/3.png` was removed"]


def edit_rename(folder: Path) -> list[str]:
    (folder / "train/b/3.png").rename(folder / "train/b/new.png")
    return ["`train/b/3.png` was removed", "`train/b/new.png` was added"]


def edit_replace(folder: Path) -> list[str]:
    path = folder / "test/a/0.png"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"more")
    return [f"`test/a/0.png` has another size ({size:,} bytes, now {size + 4:,})"]


def edit_label(folder: Path) -> list[str]:
    (folder / "train/a/2.png").rename(folder / "train/b/20.png")
    return [
        "`train/a` had 10 images, now 9", "`train/b` had 10 images, now 11",
        "`train/a/2.png` was removed", "`train/b/20.png` was added",
    ]  # fmt: skip


def edit_class(folder: Path) -> list[str]:
    shutil.copytree(folder / "train/a", folder / "train/c")
    return ["the class `c` was added in `train` (10 images)"]


def edit_split(folder: Path) -> list[str]:
    shutil.copytree(folder / "test", folder / "val")
    return ["`val` was added (4 images)"]


def edit_class_name(folder: Path) -> list[str]:
    for split in ("train", "test"):
        (folder / split / "b").rename(folder / split / "d")
    return [
        "the class `b` was removed in `test` (2 images)", "the class `d` was added in `test` (2 images)",
        "the class `b` was removed in `train` (10 images)", "the class `d` was added in `train` (10 images)",
    ]  # fmt: skip


def edit_garbage(folder: Path) -> list[str]:
    path = folder / "train/a/1.png"
    size = path.stat().st_size
    path.write_bytes(b"no image")
    return [f"`train/a/1.png` has another size ({size:,} bytes, now 8)"]


def edit_train(folder: Path) -> list[str]:
    shutil.rmtree(folder / "train")
    return ["`train` was removed (20 images)"]


EDITS = [
    edit_remove, edit_rename, edit_replace, edit_label, edit_class, edit_split, edit_class_name, edit_garbage,
    edit_train,
]  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images/train", size=(28, 28))
    write_images(tmp_path / "images/test", count=2, size=(28, 28))
    (tmp_path / "images/train/notes.txt").write_text("not an image")
    return tmp_path / "images"


def copy_of(folder: Path, name: str) -> Path:
    """Return a copy of a folder, with other times and inodes."""
    target = folder.with_name(name)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, copy_function=shutil.copyfile)
    return target


@pytest.mark.usefixtures("no_workers")
def test_changed_data_is_noticed_on_resume_and_in_test(
    run: Callable[..., Result], stopped: Callable[..., Result], images: Path, tmp_path: Path
):
    result = stopped(folder_spec(images))
    weights = [result.folder / "checkpoints" / name for name in ("best.safetensors", "best.ckpt", "last.ckpt")]
    alone = tmp_path / "alone.safetensors"
    shutil.copyfile(weights[0], alone)
    for edit in EDITS:
        edited = copy_of(images, "edited")
        expected = edit(edited)
        with pytest.raises(CnnspecError) as error:
            run(folder_spec(edited), resume=True)
        assert changes_of(error) == expected
        if edit in (edit_split, edit_train):  # a test compares the splits that both have
            continue
        for file in weights[:: 1 if edit is edit_remove else 3]:
            with pytest.raises(CnnspecError) as error:
                evaluate(folder_spec(edited), file)
            assert (code(error), list(error.value.diagnostics[0].notes)) == ("E0519", expected)
        with pytest.raises(CnnspecError) as error:  # without the list of images in the run folder
            evaluate(folder_spec(edited), alone)
        assert code(error) == "E0519"
        assert error.value.diagnostics[0].notes
    edited = copy_of(images, "edited")
    edit_rename(edited)
    assert evaluate(folder_spec(edited), weights[0], accept_changes=True)["data_changes"] != []
    whole = copy_of(images, "moved")
    shutil.rmtree(images)
    tested = evaluate(folder_spec(whole), weights[0])
    assert (tested["data_changes"], tested["data_identity"]["path"]) == ([], str(whole))
    resumed = run(folder_spec(whole), resume=True)
    assert (resumed.state, resumed.values["changes"]) == ("finished", [])


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize("moved", ["everything", "the runs", "the spec with its images"])
def test_a_run_resumes_after_its_files_are_moved(
    moved: str, run: Callable[..., Result], stopped: Callable[..., Result], images: Path, tmp_path: Path
):
    stopped(folder_spec(images))
    (tmp_path / "elsewhere").mkdir()
    names = {"everything": ["runs", "images", "tiny.cnn"], "the runs": ["runs"]}.get(moved, ["images", "tiny.cnn"])
    for name in names:
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    spec, runs = (next(tmp_path.rglob(name)) for name in ("tiny.cnn", "runs"))
    options = TrainOptions(out=runs, resume=True, offline=True, plots=False)
    resumed = train(load(spec), options)
    assert (resumed.state, resumed.values["changes"]) == ("finished", [])
    assert resumed.values["data_identity"]["path"] == str(spec.parent / "images")


@pytest.mark.usefixtures("no_workers")
def test_data_of_the_command_line_are_named_again(
    run: Callable[..., Result], stopped: Callable[..., Result], images: Path
):
    stopped(data=Setting.of(Folder(path=str(images), val=0.25)), batch=4, graph=tiny(("classes 10", "classes 2")))
    graph = tiny(("classes 10", "classes 2"))
    with pytest.raises(CnnspecError) as error:
        run(graph, resume=True)
    assert code(error) == "E0506"
    assert error.value.diagnostics[0].help == f"add `--data folder:{images}`"
    whole = copy_of(images, "moved images")
    assert run(graph, resume=True, data=Setting.of(Folder(path=str(whole), val=0.25))).values["changes"] == []


@pytest.mark.parametrize("base", [None, "/"])
@pytest.mark.parametrize("name", ["folder", "hf"])
def test_a_run_cannot_name_a_folder(
    name: str, base: str | None, run: Callable[..., Result], stopped: Callable[..., Result], images: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    result = stopped(folder_spec(images), step=1)
    private = tmp_path / "private"
    shutil.copytree(images, private)
    path = result.folder / "result.json"
    values = json.loads(path.read_text())
    data = values["recipe"]["data"]
    data |= {"name": name, "base": base, "args": {**data["args"], "path": str(private).lstrip("/" if base else "")}}
    if name == "hf":
        data["args"] |= {"revision": None, "image": "image", "label": "label"}
    path.write_text(json.dumps(values))
    opened: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path=".": (opened.append(Path(path)), scandir(path))[1])
    with pytest.raises(CnnspecError) as error:
        run(folder_spec(images), resume=True)
    assert code(error) == "E0506"
    assert not any(path.is_relative_to(private) for path in opened)


@pytest.mark.usefixtures("no_workers")
def test_accepted_data_is_used(run: Callable[..., Result], stopped: Callable[..., Result], images: Path):
    stopped(folder_spec(images), step=1)
    for number in range(10, 14):
        shutil.copyfile(images / "train/a/0.png", images / f"train/a/{number}.png")
    result = run(folder_spec(images), resume=True, accept_changes=True)
    assert result.values["data_identity"]["images"]["train"] == {"a": 14, "b": 10}
    assert result.values["steps"] == 3 * (18 // 4)
    assert read_about(result.folder / "checkpoints/last.ckpt")["data"]["images"]["train"] == {"a": 14, "b": 10}
    assert [entry["name"] for entry in result.values["changes"][0]["changes"]] == ["data"] * 5
    assert evaluate(folder_spec(images), result.folder / "checkpoints/best.safetensors")["data_changes"] == []


@pytest.mark.usefixtures("no_workers")
def test_contents_are_compared_on_request(run: Callable[..., Result], stopped: Callable[..., Result], images: Path):
    def overwrite() -> None:
        path = images / "train/a/5.png"
        content = bytearray(path.read_bytes())
        content[-5] ^= 1  # the checksum at the end, which Pillow does not read
        path.write_bytes(content)

    result = stopped(folder_spec(images))
    best = result.folder / "checkpoints/best.safetensors"
    with pytest.raises(CnnspecError, match="cannot verify the dataset"):
        run(folder_spec(images), resume=True, verify_data=True)
    with pytest.raises(CnnspecError, match="cannot verify the dataset"):
        evaluate(folder_spec(images), best, verify_data=True)
    result = stopped(folder_spec(images), verify_data=True)
    best = result.folder / "checkpoints/best.safetensors"
    assert evaluate(folder_spec(images), best, verify_data=True)["data_changes"] == []
    overwrite()
    with pytest.raises(CnnspecError) as error:
        run(folder_spec(images), resume=True, verify_data=True)
    assert changes_of(error) == ["`train/a/5.png` has other contents"]
    with pytest.raises(CnnspecError) as error:
        evaluate(folder_spec(images), best, verify_data=True)
    assert error.value.diagnostics[0].notes == ("`train/a/5.png` has other contents",)
    assert evaluate(folder_spec(images), best)["data_changes"] == []
    hashed = result.values["data_identity"]["contents"]
    assert run(folder_spec(images), resume=True).values["data_identity"]["contents"] == hashed


def test_the_identity_of_a_data_set_in_memory(tmp_path: Path):
    graph = tiny()
    first = load_data(graph, Setting.of(FashionMini()), tmp_path)
    second = load_data(tiny(("input 1x", "input 3x")), Setting.of(FashionMini(val=7, train=9)), tmp_path, verify=True)
    assert first.inventory
    assert second.inventory
    assert differences(first.inventory, second.inventory) == []
    assert sum(first.inventory.identity.images["train"].values()) == 6000
    assert first.inventory.identity.contents is None
    assert second.inventory.identity.contents is not None
    other_labels = first.inventory.identity.model_copy(update={"digest": "0" * 64, "splits": {"train": "1"}})
    found = differences(dataclasses.replace(first.inventory, identity=other_labels), first.inventory)
    assert found == ["names, sizes or labels of images in `train` have changed"]


def test_each_file_of_a_folder_is_looked_up_once(images: Path, monkeypatch: pytest.MonkeyPatch):
    """Count the system calls, because a dataset can have millions of files on a slow disk."""
    opened = [0]
    scandir = os.scandir

    def counted(path: Any) -> Any:
        opened[0] += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    monkeypatch.setattr(Path, "is_file", lambda self: pytest.fail("a second look at a file"))
    load_data(folder_spec(images), Setting.of(Folder(path=str(images))), Path())
    assert opened[0] <= 12  # two splits with two classes


def test_a_damaged_list_of_images_does_not_hide_a_change(
    run: Callable[..., Result], stopped: Callable[..., Result], images: Path, no_workers: None
):
    result = stopped(folder_spec(images))
    content = (result.folder / FILE).read_bytes()
    edit_remove(images)
    for damaged in (b"", content[: len(content) // 2], b"\x1f\x8bxx", content[:-4] + b"abcd"):
        (result.folder / FILE).write_bytes(damaged)
        with pytest.raises(CnnspecError) as error:
            run(folder_spec(images), resume=True)
        first, second = changes_of(error)
        assert first == "`train/a` had 10 images, now 9"
        assert second.startswith(f"the files are not named: cannot read `{FILE}`: ")


def listed(images: Path) -> Inventory:
    inventory = load_data(folder_spec(images), Setting.of(Folder(path=str(images))), Path()).inventory
    assert inventory is not None
    return inventory


def test_the_list_of_images_is_read_again(images: Path, tmp_path: Path):
    for name in ("a\nb.png", 'a"\\.png', "\u20ac.png", os.fsdecode(b"\xff.png")):
        shutil.copyfile(images / "train/a/0.png", images / "train/a" / name)
    inventory = listed(images)
    content = inventory.to_bytes()
    assert content is not None
    assert content == listed(images).to_bytes()
    (tmp_path / FILE).write_bytes(content)
    found = Inventory.read(inventory.identity, tmp_path / FILE)
    assert found.problem is None
    assert {name: part.by_name() for name, part in found.splits.items()} == {
        name: part.by_name() for name, part in inventory.splits.items()
    }


LISTS: dict[str, Callable[[list[bytes]], Iterator[bytes]]] = {
    "one more image": lambda rows: iter([*rows, b'["train","train/a/11.png",1,"a"]']),
    "one image less": lambda rows: iter(rows[:-1]),
    "a file of another run": lambda rows: iter([rows[0].replace(b"0.png", b"x.png", 1), *rows[1:]]),
    "another class": lambda rows: iter([rows[0].replace(b'"a"]', b'"x"]'), *rows[1:]]),
    "a class that is a list": lambda rows: iter([rows[0].replace(b'"a"]', b"[]]"), *rows[1:]]),
    "a hash of one image": lambda rows: iter([rows[0].replace(b"]", b',"0"]'), *rows[1:]]),
    "two hashes": lambda rows: iter([rows[0].replace(b"]", b',"0","1"]'), *rows[1:]]),
    "a size that is a text": lambda rows: iter([b'["train","a","1","a"]']),
    "a negative size": lambda rows: iter([b'["train","a",-1,"a"]']),
    "long sizes": lambda rows: (b'["train","a",%s,"a"]' % (b"9" * 4000) for _ in range(2000)),
    "a split that is a list": lambda rows: iter([b'[[],"a",1,"a"]']),
    "an object": lambda rows: iter([b"{}"]),
    "a number": lambda rows: iter([b"1"]),
    "empty lines": lambda rows: iter([b""] * 1000),
    "nested lists": lambda rows: iter([b"[" * 60_000]),
    "a long line": lambda rows: iter([b'["train","' + b"a" * 4_000_000 + b'",1,"a"]']),
    "many images": lambda rows: (b'["train","%d",1,"a"]' % number for number in range(50_000)),
    "many hashes": lambda rows: (b'["train","%d",1,"a","%d"]' % (number, number) for number in range(50_000)),
    "long names": lambda rows: (b'["train","' + b"a" * 60_000 + b'",1,"a"]' for _ in range(100)),
    "wide names": lambda rows: (b'["train","\\ud83d\\ude00' + b"a" * 60_000 + b'",1,"a"]' for _ in range(50)),
    "old contents": lambda rows: iter([b'{"digest":"","splits":{}}']),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_hostile_list_of_images_is_ignored_with_a_reason(
    kind: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(identity, "MAX_LIST_MEMORY", 1 << 20)
    inventory = listed(images)
    rows = gzip.decompress(inventory.to_bytes() or b"").splitlines()
    path = tmp_path / FILE
    path.write_bytes(gzip.compress(b"".join(row + b"\n" for row in LISTS[kind](rows))))
    tracemalloc.start()
    try:
        found = Inventory.read(inventory.identity, path)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()
    assert not found.splits
    assert found.problem


@pytest.mark.usefixtures("no_workers")
def test_too_many_images_are_not_listed(
    run: Callable[..., Result], images: Path, monkeypatch: pytest.MonkeyPatch, output: io.StringIO
):
    monkeypatch.setattr(identity, "MAX_LIST_MEMORY", 1000)
    result = run(folder_spec(images), epochs=1)
    assert not (result.folder / FILE).exists()
    assert result.values["data_identity"]["images"]["train"] == {"a": 10, "b": 10}
    assert f"the folder has too many images for `{FILE}`: a later change names no files" in output.getvalue()


def test_another_data_set_by_name_can_be_tested(run: Callable[..., Result], tmp_path: Path):
    result = run(tiny())
    weights = result.folder / "checkpoints/best.safetensors"
    assert read_about(weights)["data"]["name"] == "fashion_mini"
    with pytest.raises(CnnspecError) as error:
        evaluate(tiny(), weights, data=Setting.of(Cifar10()), data_dir=tmp_path, offline=True)
    assert code(error) == "E0502"  # and not a change of the data
