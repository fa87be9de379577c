"""Plan a run without starting it."""

from __future__ import annotations

from typing import Any

from cnnspec.backends.torch.module import to_module
from cnnspec.backends.torch.weights import PUBLISHED, find_published
from cnnspec.diagnostics import CnnspecError
from cnnspec.files import weights_file
from cnnspec.ir import Graph
from cnnspec.recipe import Recipe
from cnnspec.training.data import identity
from cnnspec.training.data.batches import steps_per_epoch
from cnnspec.training.data.datasets import SOURCES, load_data
from cnnspec.training.data.download import downloads
from cnnspec.training.loop.autotune import cache_file, read_cached
from cnnspec.training.loop.machine import default_threads, default_workers, device_of
from cnnspec.training.loop.optimizers import optimizer_for
from cnnspec.training.runs.devices import choose_devices
from cnnspec.training.runs.folder import next_folder
from cnnspec.training.runs.options import (
    TrainOptions,
    effective_recipe,
    lightning_precision,
    rate_rule,
    recipe_lines,
    statistics_rule,
)
from cnnspec.training.runs.placement import Placement, choose_placement, memory

FILES = (
    "spec.cnn", "model.json", "result.json", "metrics.csv", "metrics.jsonl", "predictions.csv", "tensorboard/",
    "checkpoints/last.ckpt", "checkpoints/previous.ckpt", "checkpoints/best.ckpt", "checkpoints/best.safetensors",
)  # fmt: skip
PLOTS = (
    "augmentation.png", "curves.svg", "curves.png", "confusion.csv", "confusion.png", "misclassified.png",
    "reliability.png",
)  # fmt: skip


def plan(graph: Graph, options: TrainOptions | None = None) -> dict[str, Any]:
    """Return everything that a run would use, as plain data, without writing or downloading anything.

    Raises:
        CnnspecError: The recipe is invalid.
    """
    options = options or TrainOptions()
    recipe = effective_recipe(graph, options)
    optimizer_for(to_module(graph), recipe, 1)  # raises if torch rejects the recipe
    device = device_of(options.accelerator)
    precision = lightning_precision(options.precision or recipe.precision, device)
    cached = read_cached(graph, recipe.batch, device, precision)
    _, reason = choose_devices(options, graph.macs * recipe.batch)
    folder = next_folder(options.out, graph)
    data, steps = _describe_data(graph, recipe, options)
    return {
        "network": {"name": graph.name, "parameters": graph.parameter_count, "macs": graph.macs},
        "recipe": _describe_recipe(graph, recipe, options),
        "data": data,
        "weights": _describe_weights(graph, options),
        "steps": {"epoch": steps, "run": steps and steps * recipe.epochs},
        "device": {
            "accelerator": device.type,
            "devices": f"1 ({reason})" if reason else options.devices,
            "strategy": options.strategy,
            "learning_rate": rate_rule(graph.recipe, options),
            "bn_statistics": statistics_rule(recipe),
            "precision": precision,
            "memory_format": options.memory_format or cached or "measured at the start of the run",
            "threads": options.threads or default_threads(),
            "allocator": options.allocator,
            **({"cache": str(cache_file())} if cached and not options.memory_format else {}),
        },
        "memory": memory(graph, recipe, int(data.get("bytes", 0))),
        "files": {
            "folder": str(folder),
            "names": [
                *FILES,
                *([identity.FILE] if recipe.data.name == "folder" else ()),
                *(PLOTS if options.plots else ()),
            ],
        },
    }


def _describe_recipe(graph: Graph, recipe: Recipe, options: TrainOptions) -> list[dict[str, str]]:
    """Return each entry with its value and origin."""
    overridden = options.overrides(graph.recipe)

    def origin(name: str) -> str:
        if name in overridden:
            return "option"
        if name in graph.recipe.overridden:
            return "--set"
        return "spec" if name in recipe.specified or name == "planned" else "default"

    return [{"entry": name, "value": text, "origin": origin(name)} for name, text in recipe_lines(recipe)]


def _describe_data(graph: Graph, recipe: Recipe, options: TrainOptions) -> tuple[dict[str, Any], int | None]:
    """Return a description of the dataset on disk, and the steps per epoch."""
    found: dict[str, Any] = {"name": recipe.data.name, "directory": str(options.data_dir)}
    try:
        data = load_data(graph, recipe.data, options.data_dir, offline=True, images=options.images)
    except CnnspecError as error:
        if error.diagnostics[0].code != "E0502" or recipe.data.name not in SOURCES:
            raise
        found["downloads"] = [{"url": url, "bytes": size} for url, size in downloads(recipe.data.name)]
        return {**found, "state": "not found" if options.offline else "not found, will be downloaded"}, None
    parts = {"train": data.train, "val": data.val, "test": data.test}
    found |= {"state": "found", "images": {name: len(part) for name, part in parts.items() if part is not None}}
    found |= {"mean": list(data.mean), "std": list(data.std)}
    found |= {
        "bytes": data.nbytes,
        "cache": choose_placement(data, options.cache, graph, recipe, device_of(options.accelerator)).to_json(),
        "workers": 0 if data.train.in_memory else default_workers() if options.workers is None else options.workers,
    }
    return found, steps_per_epoch(data.train, recipe.batch)


def _describe_weights(graph: Graph, options: TrainOptions) -> dict[str, Any] | None:
    """Return a description of the initial weights, or None if they are random.

    Raises:
        CnnspecError: E0505 if a file does not exist, or torchvision has no such weights.
    """
    source = options.weights
    if source is None:
        return None
    if not source.startswith(PUBLISHED):
        weights_file(source)
        return {"source": source, "state": "found"}
    found = find_published(graph, source.removeprefix(PUBLISHED))
    if found.file.is_file():
        return {"source": source, "state": "found", "file": str(found.file)}
    state = "not found" if options.offline else "not found, will be downloaded"
    size = round(found.megabytes * 1e6)
    return {"source": source, "state": state, "downloads": [{"url": found.url, "bytes": size}]}


def plan_lines(planned: dict[str, Any]) -> list[str]:
    """Format a plan for people."""
    network, data, device, files = (planned[key] for key in ("network", "data", "device", "files"))
    lines = [f"network  {network['name']}: {network['parameters']:,} parameters, {network['macs'] / 1e6:,.2f} MMACs"]
    width = max(len(row["entry"]) for row in planned["recipe"])
    lines += ["recipe", *(f"  {r['entry']:<{width}}  {r['value']}  ({r['origin']})" for r in planned["recipe"])]
    counts = ", ".join(f"{count:,} {name}" for name, count in data.get("images", {}).items())
    lines.append(f"data     {data['name']}: {counts or data['state']}")
    lines += [f"  {file['url']}  {file['bytes'] / 1e6:,.1f} MB" for file in data.get("downloads", [])]
    if cache := data.get("cache"):
        lines.append(f"  cache: {Placement(**cache)}")
    if weights := planned["weights"]:
        lines.append(f"weights  {weights['source']}: {weights['state']}")
        lines += [f"  {file['url']}  {file['bytes'] / 1e6:,.1f} MB" for file in weights.get("downloads", [])]
    steps = planned["steps"]
    text = f"{steps['epoch']:,} per epoch, {steps['run']:,} in total" if steps["epoch"] else "unknown without the data"
    lines.append(f"steps    {text}")
    notes = {"cache": " (the memory format was measured before; delete the file to measure it again)"}
    lines += ["device", *(f"  {name:<13}  {value}{notes.get(name, '')}" for name, value in device.items())]
    memory = planned["memory"]
    lines += ["memory (estimated)", *(f"  {name:<13}  {size / 2**20:,.1f} MiB" for name, size in memory.items())]
    lines += [f"files in {files['folder']}", *(f"  {name}" for name in files["names"])]
    return lines
