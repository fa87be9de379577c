"""Collect the networks of a comparison: specs with every combination of a grid of settings, or the networks of runs."""

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
from cnnspec.training.runs.lookup import StoredRun, run_key
from cnnspec.training.runs.options import TrainOptions, effective_recipe, recipe_lines

Grid = Mapping[str, Sequence[Any]]
"""Values by the name of a parameter or recipe entry."""


@dataclass(frozen=True)
class Candidate:
    """A network in a comparison.

    Attributes:
        label: Its unique name in the comparison.
        graph: The network.
        recipe: The recipe, with the first seed.
        settings: The values from the grid.
        weights: The source of the initial weights, or None if they are random.
        data: The digest of the dataset, or None if it is unknown.
    """

    label: str
    graph: Graph
    recipe: Recipe
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: str | None = None
    data: str | None = None

    @cached_property
    def key(self) -> str:
        """A hash of everything but the seed."""
        return run_key(self.graph, self.recipe, self.weights, self.data)

    @cached_property
    def work(self) -> int:
        """The training cost per training image, in floating-point operations over all epochs."""
        return count(self.graph).training_flops * self.recipe.epochs


def make_candidates(
    specs: Sequence[str | Path | Graph], grid: Grid, options: TrainOptions, log: Callable[[str], None]
) -> list[Candidate]:
    """Create a candidate for each network and each combination of the settings that it has.

    Args:
        specs: Files, names of shipped specs, or networks.
        grid: The settings.
        options: The training options.
        log: Called with a message for each setting that a network lacks.

    Raises:
        CnnspecError: A spec is invalid or rejects a value. E0217 if no spec has a setting. E0206 if a network is given
            twice.
    """
    if "seed" in grid:
        help = "use `--seeds` for the number of seeds per network, and `--seed` for the first one"
        raise failure("E0204", "`seed` cannot be a setting of a comparison", help=help)
    found: list[tuple[Candidate, str]] = []
    missing: dict[str, dict[str, Diagnostic | None]] = {name: {} for name in grid}
    for spec in specs:
        source = _distinguishing_text(spec, specs) if isinstance(spec, Graph) else str(spec)
        by_settings: dict[tuple[Any, ...], Candidate] = {}
        known: set[str] = set()
        for values in product(*grid.values()):
            graph, settings, unknown = _compile(spec, dict(zip(grid, values, strict=True)))
            known |= settings.keys()
            for name, diagnostic in unknown.items():
                missing[name].setdefault(source, diagnostic)
            label = [graph.name, *(f"{name}={settings[name]}" for name in settings if len(grid[name]) > 1)]
            candidate = Candidate(" ".join(label), graph, effective_recipe(graph, options), settings, options.start)
            by_settings.setdefault(tuple(settings.items()), candidate)
        for name in known:
            missing[name].pop(source, None)
        found += [(candidate, source) for candidate in by_settings.values()]
    for name, without in missing.items():
        if len(without) == len(specs):
            diagnostics = [diagnostic for diagnostic in without.values() if diagnostic is not None]
            raise (
                CnnspecError(diagnostics[:1])
                if diagnostics
                else failure("E0217", f"no network has a parameter or recipe entry `{name}`")
            )
        for source in without:
            log(f"`{source}` has no `{name}` and is compared without it")
    return _make_labels_unique(found)


def _distinguishing_text(graph: Graph, specs: Iterable[str | Path | Graph]) -> str:
    """Return the parameters and recipe entries in which a network differs from others of the same name."""
    same_name = [other for other in specs if isinstance(other, Graph) and other.name == graph.name]
    values = [
        {name: evaluate(expr, {}) for name, expr in other.model.constants.items()} for other in (graph, *same_name)
    ]
    own = (f"{n}={show(v)}" for n, v in values[0].items() if any(other.get(n, v) != v for other in values[1:]))
    return " ".join([*own, *_differing_entries(graph.recipe, [other.recipe for other in same_name])]) or graph.name


def _compile(
    spec: str | Path | Graph, given: dict[str, Any]
) -> tuple[Graph, dict[str, Any], dict[str, Diagnostic | None]]:
    """Compile a spec. Return the network, the settings that it has, and the diagnostics of the others."""
    if isinstance(spec, Graph):
        return spec, {}, dict.fromkeys(given)
    done = compile_file(spec, given)
    if done.graph is not None or not given:
        return done.require_graph(), given, {}
    unknown: dict[str, Diagnostic | None] = {}
    for name, value in given.items():
        alone = (d for d in compile_file(spec, {name: value}).diagnostics if d.code == "E0217")
        if (diagnostic := next(alone, None)) is not None:
            unknown[name] = diagnostic
    known = {name: value for name, value in given.items() if name not in unknown}
    return compile_file(spec, known).require_graph(), known, unknown


def candidates_from_runs(runs: Iterable[StoredRun], folders: Sequence[str | Path]) -> list[Candidate]:
    """Create a candidate for each network among the runs. Networks of one name are labeled by their recipes.

    Raises:
        CnnspecError: E0506 if no run is found.
    """
    by_key: dict[str, list[StoredRun]] = {}
    for run in runs:
        by_key.setdefault(run.key, []).append(run)
    if not by_key:
        places = ", ".join(str(folder) for folder in folders)
        raise failure(
            "E0506",
            "no finished run found",
            file=places or None,
            help="pass the networks to train, or a folder of finished runs with `--runs`",
        )
    found: list[tuple[Candidate, str]] = []
    firsts = [min(same, key=lambda run: run.seed) for same in by_key.values()]
    for run in firsts:
        same_name = [other.recipe for other in firsts if other.graph.name == run.graph.name]
        label = " ".join([run.graph.name, *_differing_entries(run.recipe, same_name)])
        candidate = Candidate(label, run.graph, run.recipe, {}, run.result.get("weights"), run.data)
        found.append((candidate, str(run.folder)))
    return _make_labels_unique(found)


def _differing_entries(recipe: Recipe, all_: Iterable[Recipe]) -> list[str]:
    """Return the entries in which a recipe differs from any other."""
    others = [dict(recipe_lines(other)) for other in all_]
    return [
        f"{entry}={text}"
        for entry, text in recipe_lines(recipe)
        if entry != "seed" and any(other.get(entry) != text for other in others)
    ]


def _make_labels_unique(found: Sequence[tuple[Candidate, str]]) -> list[Candidate]:
    """Return the candidates with unique labels. Duplicate labels are extended by the file or folder.

    Raises:
        CnnspecError: E0206 if a candidate is given twice.
    """
    labels = Counter(candidate.label for candidate, _ in found)
    labeled: dict[str, Candidate] = {}
    for candidate, source in found:
        label = candidate.label if labels[candidate.label] == 1 else f"{candidate.label} ({source})"
        if label in labeled:
            raise failure("E0206", f"`{label}` is given more than once", help="remove the duplicate")
        labeled[label] = replace(candidate, label=label)
    return list(labeled.values())


def folder_name(candidates: Sequence[Candidate]) -> str:
    """Return the default folder name of a comparison, made of the names of the networks."""
    names = "-".join(dict.fromkeys(candidate.graph.name for candidate in candidates))
    return re.sub(r"[^\w.-]+", "_", names)[:80].strip(".") or "networks"
