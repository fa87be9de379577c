"""Restore a checkpoint under another recipe or with other data: convert what depends on them.

Without changes, everything is restored exactly as it was saved. The learning rate and the other arguments of the
optimizer always come from the recipe, and the position in the schedule from the number of steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cnnspec.recipe import OPTIMIZERS, Folder, Recipe
from cnnspec.training.data.identity import DataIdentity
from cnnspec.training.loop.checkpoints import State

RunFacts = dict[str, Any]
"""The facts about a run that its checkpoints depend on, as plain data; see `run_facts`."""


def run_facts(recipe: Recipe, steps: int, data: dict[str, Any] | None) -> RunFacts:
    """Return the facts to store in a checkpoint: the recipe, the steps per epoch, and the identity of the data."""
    return {"recipe": recipe.model_dump(mode="json"), "steps_per_epoch": steps, "data": data}


def convert(state: State, recipe: Recipe, run: RunFacts, log: Callable[[str], None]) -> State:
    """Convert a checkpoint to the recipe and the data of a run. Without changes, it stays the same.

    Args:
        state: The checkpoint.
        recipe: The recipe.
        run: The facts about the run.
        log: Called with a message about what cannot be carried over.
    """
    before = state.get("run")
    if before is None or before == run:
        return state
    old = Recipe.model_validate(before["recipe"])
    progress = _convert_steps(state["progress"], old, recipe, before["steps_per_epoch"], run["steps_per_epoch"])
    if not same_images(before["data"], run["data"]) or not same_split(old, recipe):
        progress |= {"best_score": -1.0, "best_loss": 0.0, "epochs_without_improvement": 0}  # of other images
    if old.accumulate != recipe.accumulate:
        progress["parts"] = recipe.accumulate
    if (old.epochs, old.early_stop, old.minutes) != (recipe.epochs, recipe.early_stop, recipe.minutes):
        waited = progress["epochs_without_improvement"]
        progress["stopped_early"] = recipe.early_stop is not None and waited >= recipe.early_stop
    state = {**state, "progress": progress, "run": run}
    if recipe.ema is None and "trained" in state:
        state["state_dict"] = {f"network.{key}": value for key, value in state.pop("trained").items()}
        del state["averaged"]
    if recipe.ema is not None and "trained" not in state:
        state |= {"trained": {k.removeprefix("network."): v for k, v in state["state_dict"].items()}, "averaged": 0}
    if not _keeps_state(old, recipe):
        log(f"the optimizer starts without the state of `{old.optimizer.name}`")
        state["optimizer_states"] = []
    return state


def same_split(old: Recipe, new: Recipe) -> bool:
    """Return whether two recipes select the same images of a dataset. The path of a folder does not count."""
    ignored = {"path": None} if old.data.name == Folder.name else {}
    return (old.data.name, old.data.args | ignored) == (new.data.name, new.data.args | ignored)


def same_images(old: dict[str, Any] | None, new: dict[str, Any] | None) -> bool:
    """Return whether two identities are of the same dataset, or unknown."""
    return old is None or new is None or DataIdentity.model_validate(old).same(DataIdentity.model_validate(new))


def _convert_steps(progress: dict[str, Any], old: Recipe, new: Recipe, before: int, after: int) -> dict[str, Any]:
    """Convert steps to the new number of steps per epoch. A part of an epoch is rounded down to whole batches."""
    progress = dict(progress)
    if before == after and old.batch == new.batch:
        return progress
    for key in ("step", "validated_step"):
        epoch, step = divmod(progress[key], before)
        progress[key] = epoch * after + min(step * old.batch // new.batch, after)
    return progress


def _keeps_state(old: Recipe, new: Recipe) -> bool:
    """Return whether the state of the optimizer has the same form: the same values for the same groups of weights."""

    def form(recipe: Recipe) -> tuple[Any, ...]:
        setting = recipe.optimizer
        arguments: dict[str, Any] = dict(setting.args)
        declared = OPTIMIZERS[setting.name](**arguments)
        groups = recipe.decay == "weights" and bool(setting.args.get("weight_decay"))
        rated = [group.args["modules"] for group in recipe.rates]
        return setting.name, declared.remembers(1), declared.remembers(4), groups, recipe.freeze, rated

    return form(old) == form(new)


def with_own_arguments(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state with the arguments that the optimizer has now, such as its learning rate."""
    return {**saved, "param_groups": optimizer.state_dict()["param_groups"]}


def restore_optimizer(optimizer: Optimizer, schedule: LRScheduler, state: State) -> None:
    """Restore the state of an optimizer, and move its schedule to the step of the checkpoint."""
    for saved in state["optimizer_states"]:
        optimizer.load_state_dict(with_own_arguments(optimizer, saved))
    step = state["progress"]["step"]
    if step:
        schedule.load_state_dict({**schedule.state_dict(), "last_epoch": step - 1, "_step_count": step})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer has made no step
            schedule.step()
