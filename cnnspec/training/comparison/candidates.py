"""The networks of a comparison: specs with every combination of a grid of settings, or those of runs that are there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from cnnspec.analysis.cost import count
from cnnspec.compiler import compile_file
from cnnspec.diagnostics import CnnspecError, Diagnostic, failure
from cnnspec.ir import Graph
from cnnspec.ir.evaluate import evaluate, show
from cnnspec.recipe import Recipe
from cnnspec.training.runs.lookup import Stored, key_of
from cnnspec.training.runs.options import TrainOptions, recipe_lines, recipe_of

Grid = Mapping[str, Sequence[Any]]
"""Values by the name of a parameter or of a value of the recipe."""


@dataclass(frozen=True)
class Candidate:
    """A network of a comparison.

    Attributes:
        label: What it is called there.
        graph: The network.
        recipe: How it is trained, with the first of its seeds.
        settings: The values of the grid that it was given.
        weights: What its weights start from.
    """

    label: str
    graph: Graph
    recipe: Recipe
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: str | None = None

    @cached_property
    def key(self) -> str:
        """What stands for all but the seed."""
        return key_of(self.graph, self.recipe, self.weights)

    @cached_property
    def work(self) -> int:
        """Operations of its training for each image of the training set."""
        return count(self.graph).training_flops * self.recipe.epochs


def candidates_of(
    specs: Sequence[str | Path | Graph], grid: Grid, options: TrainOptions, say: Callable[[str], None]
) -> list[Candidate]:
    """Every network with every combination of those settings that it has.

    Args:
        specs: Files, names of shipped specs, or networks.
        grid: The settings.
        options: What is said beside the specs.
        say: Is told of what a network does not have.

    Raises:
        CnnspecError: A spec is at fault or does not take a value, E0217 if no spec has a setting, E0206 if a network
            is given twice.
    """
    if "seed" in grid:
        help = "`--seeds` says how many there are of each network, `--seed` which is the first"
        raise failure("E0204", "a comparison has its own seeds", help=help)
    found: list[tuple[Candidate, str]] = []
    lacking: dict[str, dict[str, Diagnostic | None]] = {name: {} for name in grid}
    for spec in specs:
        place = _in_words(spec, specs) if isinstance(spec, Graph) else str(spec)
        made: dict[tuple[Any, ...], Candidate] = {}
        had: set[str] = set()
        for values in product(*grid.values()):
            graph, settings, strange = _compiled(spec, dict(zip(grid, values, strict=True)))
            had |= settings.keys()
            for name, diagnostic in strange.items():
                lacking[name].setdefault(place, diagnostic)
            told = [graph.name, *(f"{name}={settings[name]}" for name in settings if len(grid[name]) > 1)]
            one = Candidate(" ".join(told), graph, recipe_of(graph, options), settings, options.start)
            made.setdefault(tuple(settings.items()), one)
        for name in had:
            lacking[name].pop(place, None)
        found += [(candidate, place) for candidate in made.values()]
    for name, without in lacking.items():
        if len(without) == len(specs):
            told_of = [diagnostic for diagnostic in without.values() if diagnostic is not None]
            raise CnnspecError(told_of[:1]) if told_of else failure("E0217", f"no network has `{name}`")
        for place in without:
            say(f"`{place}` has no `{name}` and is compared without it")
    return _told_apart(found)


def _in_words(graph: Graph, specs: Iterable[str | Path | Graph]) -> str:
    """In what parameters and entries of its recipe a network differs from the others of its name."""
    alike = [other for other in specs if isinstance(other, Graph) and other.name == graph.name]
    values = [{name: evaluate(expr, {}) for name, expr in other.model.constants.items()} for other in (graph, *alike)]
    own = (f"{n}={show(v)}" for n, v in values[0].items() if any(other.get(n, v) != v for other in values[1:]))
    return " ".join([*own, *_own_words(graph.recipe, [other.recipe for other in alike])]) or graph.name


def _compiled(
    spec: str | Path | Graph, given: dict[str, Any]
) -> tuple[Graph, dict[str, Any], dict[str, Diagnostic | None]]:
    """A network, those of the settings that it has, and what is said of the others."""
    if isinstance(spec, Graph):
        return spec, {}, dict.fromkeys(given)
    done = compile_file(spec, given)
    if done.graph is not None or not given:
        return done.require_graph(), given, {}
    said = [diagnostic for diagnostic in done.diagnostics if diagnostic.code == "E0217"]
    strange = {name: d for d in said for name in given if d.message.endswith(f"`{name}`")}
    known = {name: value for name, value in given.items() if name not in strange}
    return compile_file(spec, known).require_graph(), known, {**strange}


def networks_of(runs: Iterable[Stored], folders: Sequence[str | Path]) -> list[Candidate]:
    """The networks of runs that are there, by name; those of one name are told apart by their recipes.

    Raises:
        CnnspecError: E0506 if there is no run.
    """
    by_key: dict[str, list[Stored]] = {}
    for run in runs:
        by_key.setdefault(run.key, []).append(run)
    if not by_key:
        places = ", ".join(str(folder) for folder in folders)
        raise failure(
            "E0506", "there is no finished run to compare", file=places or None, help="name networks to train"
        )
    found: list[tuple[Candidate, str]] = []
    firsts = [min(same, key=lambda run: run.seed) for same in by_key.values()]
    for run in firsts:
        alike = [other.recipe for other in firsts if other.graph.name == run.graph.name]
        label = " ".join([run.graph.name, *_own_words(run.recipe, alike)])
        found.append((Candidate(label, run.graph, run.recipe, {}, run.result.get("weights")), str(run.folder)))
    return _told_apart(found)


def _own_words(recipe: Recipe, all_: Iterable[Recipe]) -> list[str]:
    """The entries of a recipe that are not those of all."""
    others = [dict(recipe_lines(other)) for other in all_]
    return [
        f"{entry}={text}"
        for entry, text in recipe_lines(recipe)
        if entry != "seed" and any(other.get(entry) != text for other in others)
    ]


def _told_apart(found: Sequence[tuple[Candidate, str]]) -> list[Candidate]:
    """The candidates with labels of their own: those of one label get the place that they come from.

    Raises:
        CnnspecError: E0206 if two are the same.
    """
    labels = Counter(candidate.label for candidate, _ in found)
    made: dict[str, Candidate] = {}
    for candidate, place in found:
        label = candidate.label if labels[candidate.label] == 1 else f"{candidate.label} ({place})"
        if label in made:
            raise failure("E0206", f"`{label}` is given twice", help="a network is compared with others than itself")
        made[label] = replace(candidate, label=label)
    return list(made.values())


def folder_name(candidates: Sequence[Candidate]) -> str:
    """What the folder of a comparison is called: the names of its networks."""
    names = "-".join(dict.fromkeys(candidate.graph.name for candidate in candidates))
    return re.sub(r"[^\w.-]+", "_", names)[:80].strip(".") or "networks"
