"""What a run would use, without starting it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from cnnspec.analysis.cost import count, training_memory
from cnnspec.backends.torch.module import to_module
from cnnspec.diagnostics import CnnspecError
from cnnspec.ir import Graph
from cnnspec.recipe import Recipe
from cnnspec.training.data.batches import Feed, plain
from cnnspec.training.data.datasets import ImageData, load_data
from cnnspec.training.loop.autotune import look_up
from cnnspec.training.loop.machine import best_device, default_workers, free_memory
from cnnspec.training.loop.optimizers import optimizer_of
from cnnspec.training.runs.folder import next_folder
from cnnspec.training.runs.options import TrainOptions, recipe_lines, recipe_of

SHARE = 0.8
"""Of the memory that is free on a device: what can be told of a run must fit into it, if the images are to be there."""
FILES = (
    "spec.cnn", "model.json", "result.json", "metrics.csv", "metrics.jsonl", "predictions.csv", "tensorboard/",
    "checkpoints/last.ckpt", "checkpoints/former.ckpt", "checkpoints/best.ckpt", "checkpoints/best.safetensors",
)  # fmt: skip
PICTURES = (
    "augmentation.png", "curves.svg", "curves.png", "confusion.csv", "confusion.png", "wrong.png",
)  # fmt: skip


def plan(graph: Graph, options: TrainOptions | None = None) -> dict[str, Any]:
    """Everything that a run would use, as plain data; nothing is written and nothing downloaded.

    Raises:
        CnnspecError: The recipe cannot be followed.
    """
    options = options or TrainOptions()
    recipe = recipe_of(graph, options)
    optimizer_of(to_module(graph), recipe, 1)  # a recipe that torch cannot follow is refused here
    device = best_device() if options.accelerator == "auto" else torch.device(_device_type(options.accelerator))
    tuned = look_up(graph, recipe.batch, device)
    folder = next_folder(options.out, graph)
    data, steps = _data(graph, recipe, options)
    return {
        "network": {"name": graph.name, "parameters": graph.parameter_count, "macs": graph.macs},
        "recipe": _recipe(recipe, options),
        "data": data,
        "steps": {"epoch": steps, "run": steps and steps * recipe.epochs},
        "device": {
            "accelerator": device.type,
            "devices": options.devices,
            "strategy": options.strategy,
            "precision": options.precision or recipe.precision,
            "memory_format": options.memory_format or (tuned.memory_format if tuned else "measured at the start"),
            "threads": options.threads or (tuned.threads if tuned else "measured at the start"),
            "allocator": options.allocator,
        },
        "memory": memory(graph, recipe, int(data.get("bytes", 0))),
        "files": {"folder": str(folder), "names": [*FILES, *(PICTURES if options.pictures else ())]},
    }


def _device_type(accelerator: str) -> str:
    return "cuda" if accelerator in ("gpu", "cuda") else "cpu"


def _recipe(recipe: Recipe, options: TrainOptions) -> list[dict[str, str]]:
    """Each entry with its value and where it comes from."""
    changed = options.changes()

    def origin(name: str) -> str:
        if name in changed:
            return "option"
        if name in recipe.given:
            return "--set"
        return "spec" if name in recipe.stated or name == "planned" else "default"

    return [{"entry": name, "value": text, "origin": origin(name)} for name, text in recipe_lines(recipe)]


def _data(graph: Graph, recipe: Recipe, options: TrainOptions) -> tuple[dict[str, Any], int | None]:
    """The data set as it lies there, and the steps of an epoch."""
    found: dict[str, Any] = {"name": recipe.data.name, "directory": str(options.data_dir)}
    try:
        data = load_data(graph, recipe.data, options.data_dir, offline=True)
    except CnnspecError as error:
        if error.diagnostics[0].code != "E0502":
            raise
        return {**found, "state": "not there: it would be downloaded" if not options.offline else "not there"}, None
    parts = {"train": data.train, "val": data.val, "test": data.test}
    found |= {"state": "there", "images": {name: len(part) for name, part in parts.items() if part is not None}}
    found |= {"mean": list(data.mean), "std": list(data.std)}
    found |= {"bytes": data.nbytes, "workers": 0 if data.train.in_memory else default_workers()}
    return found, Feed(data.train, plain(graph, data), recipe.batch, seed=recipe.seed).batches


def memory(graph: Graph, recipe: Recipe, data: int) -> dict[str, int]:
    """Bytes, as far as they can be told; activations are what stays for the backward pass, `data` the images."""
    step = training_memory(replace(graph, recipe=recipe))
    found = {
        "weights": step.weights,
        "gradients": step.gradients,
        "optimizer": step.optimizer,
        "activations": count(graph).kept_total.at(-(-recipe.batch // recipe.accumulate)),
        "data": data,
    }
    return {**found, "total": sum(found.values()), "checkpoint": step.weights + step.optimizer}


def nearest(data: ImageData, graph: Graph, recipe: Recipe, device: torch.device) -> ImageData:
    """The images in the memory of the device if they have room there beside the training, else as they are."""
    needed = memory(graph, recipe, data.nbytes)["total"]
    return data.to(device) if needed <= SHARE * free_memory(device) else data


def plan_lines(planned: dict[str, Any]) -> list[str]:
    """A plan as a person reads it."""
    network, data, device, files = (planned[key] for key in ("network", "data", "device", "files"))
    lines = [f"network  {network['name']}: {network['parameters']:,} parameters, {network['macs'] / 1e6:,.2f} MMACs"]
    width = max(len(row["entry"]) for row in planned["recipe"])
    lines += ["recipe", *(f"  {r['entry']:<{width}}  {r['value']}  ({r['origin']})" for r in planned["recipe"])]
    counts = ", ".join(f"{count:,} {name}" for name, count in data.get("images", {}).items())
    lines.append(f"data     {data['name']}: {counts or data['state']}")
    steps = planned["steps"]
    told = f"{steps['epoch']:,} in an epoch, {steps['run']:,} in the run" if steps["epoch"] else "known with the data"
    lines.append(f"steps    {told}")
    lines += ["device", *(f"  {name:<13}  {value}" for name, value in device.items())]
    memory = planned["memory"]
    lines += ["memory, about", *(f"  {name:<13}  {size / 2**20:,.1f} MiB" for name, size in memory.items())]
    lines += [f"files in {files['folder']}", *(f"  {name}" for name in files["names"])]
    return lines
