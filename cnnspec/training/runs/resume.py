"""Resume a run: find it, restore the settings that it was started with, and notice every difference.

A setting that is not given again keeps its value. Whatever is given, the spec with the files that it uses, the data and
the software are compared with what the run recorded. Settings that cannot change the result are not compared; see
`NOT_COMPARED`.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass, field, replace
from typing import Any

import pytorch_lightning as pl
from pydantic import ValidationError

from cnnspec.analysis.diff import compare
from cnnspec.diagnostics import failure
from cnnspec.ir import Graph
from cnnspec.recipe import ORIGINS, Folder, Recipe, Setting
from cnnspec.rewrite.set_values import setting_text
from cnnspec.semantics.recipe_rules import contradictions, refuse
from cnnspec.training.data.identity import FILE, DataIdentity, Inventory, differences
from cnnspec.training.loop.launch import is_main_process, read_launch
from cnnspec.training.loop.machine import versions
from cnnspec.training.loop.processes import Processes
from cnnspec.training.loop.restore import same_split
from cnnspec.training.runs.folder import RunFolder, shared_folder
from cnnspec.training.runs.json_files import recipe_of
from cnnspec.training.runs.lookup import StoredRun, structure
from cnnspec.training.runs.options import REQUESTS, TrainOptions, overridden

NOT_COMPARED = frozenset(
    {
        "data_dir", "offline", "out", "resume", "allocator", "plots", "brief", "save_every", "log", "watch",
        "resume_command", "console", "verify_data", "accept_changes", "workers", "cache",
    }
)  # fmt: skip
"""The options that cannot change the result: places, messages, plots, workers, and how data are compared."""
RECIPE_OPTIONS = frozenset({"data", "images", "epochs", "batch", "seed", "precision"})
"""The options that are compared as entries of the recipe. `precision` is also compared as Lightning resolves it, and
`images` by their identity."""
INITIAL_WEIGHTS = frozenset({"weights", "match", "reinit"})
"""The options that have an effect only at the start of a run."""
MACHINE_OPTIONS = frozenset({"memory_format", "threads"})
"""The options that are compared with the recorded `machine`. Those of `REQUESTS` are compared as Lightning resolves
them."""


@dataclass(frozen=True)
class Change:
    """A difference between a run and the command that resumes it.

    Attributes:
        name: The setting.
        was: Its value in the run, as text; None if it was added.
        now: The new value; None if it was removed.
    """

    name: str
    was: str | None
    now: str | None

    def __str__(self) -> str:
        if self.name == "data":
            return self.now or ""
        if self.was is None or self.now is None:
            what = f"was removed: {self.was}" if self.now is None else f"was added: {self.now}"
            return f"`{self.name}` {what}"
        return f"`{self.name}` was {self.was}, is {self.now}"

    def to_json(self) -> dict[str, str | None]:
        return {"name": self.name, "was": self.was, "now": self.now}


@dataclass
class Resumption:
    """A run to resume.

    Attributes:
        folder: Its folder, locked.
        recipe: The recipe to continue with.
        options: The options, completed by those that the run was started with.
        result: The contents of its `result.json`.
        changes: What has changed.
        remarks: Messages on differences that cannot change the result.
    """

    folder: RunFolder
    recipe: Recipe
    options: TrainOptions
    result: dict[str, Any]
    changes: list[Change] = field(default_factory=list[Change])
    remarks: list[str] = field(default_factory=list[str])
    _data: Inventory | None = None

    def examine(self, inventory: Inventory) -> None:
        """Compare the dataset with that of the run.

        Raises:
            CnnspecError: E0506 if its contents are to be verified, and the run has not recorded them.
        """
        if not is_main_process():
            return
        try:
            identity = DataIdentity.model_validate(self.result.get("data_identity"))
        except ValidationError:
            self.remarks.append("the run has not recorded the identity of its data, which is not compared")
            return
        recorded = self._data = Inventory.read(identity, self.folder.path / FILE)
        self.changes += [Change("data", None, text) for text in differences(recorded, inventory)]
        if self.options.verify_data and identity.contents is None:
            raise failure(
                "E0506",
                "cannot verify the dataset: the run has not recorded a hash of its images",
                file=str(self.folder.path),
                help="omit `--verify-data` to compare names and sizes, or train again without `--resume`",
            )

    def inventory(self, found: Inventory) -> tuple[Inventory, bool]:
        """Return the identity of the dataset to record, with known hashes, and whether its list is stored."""
        recorded = self._data
        if recorded is None or not recorded.identity.same(found.identity):
            return found, False
        if found.identity.contents is not None:
            return found, bool(recorded.splits)
        identity = recorded.identity.model_copy(update={"path": found.identity.path})
        return Inventory(identity, recorded.splits or found.splits), bool(recorded.splits)

    def compare_machine(self, trainer: pl.Trainer) -> None:
        """Compare the devices and the precision with those of the run, as Lightning resolves them."""
        if not is_main_process():
            return
        resolved, machine = resolved_settings(trainer), self.result.get("machine", {})
        pairs = [(name, self.result.get(name), value) for name, value in resolved.items()]
        pairs += [(name, machine.get(name), getattr(self.options, name)) for name in sorted(MACHINE_OPTIONS)]
        requested = self.result.get("requested", {}).get("deterministic")
        pairs.append(("deterministic", requested, self.options.deterministic))
        named = {change.name for change in self.changes}
        self.changes += [
            Change(name, str(was), str(now))
            for name, was, now in pairs
            if None not in (was, now) and was != now and name not in named
        ]

    def refuse(self) -> None:
        """Raise an error that names all changes, unless they are accepted.

        Raises:
            CnnspecError: E0506.
        """
        fixed = [change for change in self.changes if change.name == "weights"]
        if fixed or (self.changes and not self.options.accept_changes):
            names = "the initial weights have" if fixed else "its settings have"
            accept = "" if fixed else "accept the changes with `--accept-changes`, "
            raise failure(
                "E0506",
                f"cannot resume the run: {names} changed since it started",
                notes=[str(change) for change in fixed or self.changes],
                file=str(self.folder.path),
                help=f"restore the earlier settings, {accept}or train again without `--resume`",
            )
        refuse(contradictions(self.recipe))


def find_run(graph: Graph, options: TrainOptions, processes: Processes) -> Resumption:
    """Find the run to resume, lock it, and compare everything but the data and the devices with it.

    Raises:
        CnnspecError: E0506 if there is no such run, or its files are damaged.
    """
    found: Resumption | None = None

    def find() -> RunFolder:
        nonlocal found
        path = options.resume if not isinstance(options.resume, bool) else None
        folder, run = RunFolder.find(options.out, graph, path)
        try:
            found = _compare(folder, run, graph, options)
        except BaseException:
            folder.release()
            raise
        return folder

    folder = shared_folder(processes, find)
    if found is None:
        result = folder.read_result()
        found = Resumption(folder, recipe_of(result, folder.path), _completed(options, result), result)
    return found


def _compare(folder: RunFolder, run: StoredRun, graph: Graph, options: TrainOptions) -> Resumption:
    recorded = run.result.get("spec") or spec_hashes(run.graph)
    edited = _edited_files(recorded, spec_hashes(graph))
    recipe = _merged_recipe(run, graph, options, same_text=not edited)
    changes = [*recipe_changes(run.recipe, recipe), *network_changes(run.graph, graph)]
    remarks: list[str] = []
    if edited and not changes:
        what = ", ".join(f"`{name}`" for name in edited)
        remarks.append(f"the text of {what} has changed since the run started, but not the network and the recipe")
    if options.start not in (None, run.result.get("weights")):
        changes.append(Change("weights", run.result.get("weights") or "random", options.start))
    now = versions()
    software = {name: was for name, was in run.result.get("versions", {}).items() if name != "python"}
    changes += [
        Change(f"{name} version", str(was), now[name]) for name, was in software.items() if now.get(name, was) != was
    ]
    if not changes:  # the origins of the entries as well
        recipe = recipe.model_copy(update={name: getattr(run.recipe, name) for name in ORIGINS})
    completed = _completed(options, run.result)
    if recipe.precision != run.recipe.precision:
        completed = replace(completed, precision=options.precision)
    return Resumption(folder, recipe, completed, run.result, changes, remarks)


def _completed(options: TrainOptions, result: dict[str, Any]) -> TrainOptions:
    """Return the options, with those that are not given taken from the run.

    The number of devices is that of the processes that were started together.
    """
    default, requests = TrainOptions(), result.get("requested", {})
    kept = [name for name in REQUESTS if name != "devices" or read_launch() is None]
    missing = [name for name in kept if getattr(options, name) == getattr(default, name)]
    return replace(options, **{name: requests[name] for name in missing if name in requests})


def resolved_settings(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the devices, the strategy and the precision of a trainer, as recorded in `result.json`."""
    return {
        "accelerator": trainer.strategy.root_device.type,
        "devices": trainer.world_size,
        "strategy": type(trainer.strategy).__name__,
        "precision": str(trainer.precision),
    }


# --- the recipe ----------------------------------------------------------------------------------


def _merged_recipe(run: StoredRun, graph: Graph, options: TrainOptions, *, same_text: bool) -> Recipe:
    """Return the recipe to continue with: an entry that is neither given again nor changed in the spec keeps its value.

    An entry of an earlier `--set` keeps its value as well, unless the text of the spec has changed, which could mean
    this entry.
    """
    new, spec, old_spec = overridden(graph, options), graph.recipe, run.graph.recipe
    given = {*options.overrides(spec), *spec.overridden}
    pairs = {"epochs": ("epochs", "planned"), "planned": ("epochs", "planned")}

    def is_kept(name: str) -> bool:
        names = pairs.get(name, (name,))
        same = all(getattr(spec, part) == getattr(old_spec, part) for part in names)
        return names[0] not in given and (same or (same_text and names[0] in old_spec.overridden))

    kept = {name: getattr(run.recipe, name) for name in Recipe.model_fields if name not in ORIGINS and is_kept(name)}
    if "data" in kept and "path" in kept["data"].args:
        kept["data"] = _stated_data(run, new.data)
    return new.model_copy(update=kept)


def _stated_data(run: StoredRun, stated: Setting) -> Setting:
    """Return the data that the spec states, whose folder may have moved, if the run was started with them.

    A path of the run is not used: a run folder can come from anywhere, and could name any folder.

    Raises:
        CnnspecError: E0506 if the run was started with others.
    """
    recorded = run.recipe.data
    if (recorded.name, recorded.args) == (stated.name, stated.args):
        return stated
    shown = f"{'stream' if recorded.args.get('stream') else recorded.name}:{recorded.args['path']}"
    if recorded.args.get("revision"):
        shown += f"@{recorded.args['revision']}"
    raise failure(
        "E0506",
        "cannot resume the run: it was started with data that neither the command nor the spec names",
        notes=[
            f"the data is `{shown}`; a path is not taken from a run folder, because its files could name any folder"
        ],
        file=str(run.folder),
        help=f"add `--data {shlex.quote(shown)}`",
    )


def recipe_changes(old: Recipe, new: Recipe) -> list[Change]:
    """Return the entries and arguments that differ between two recipes. The path of a folder does not count."""
    folder = old.data.name == new.data.name == Folder.name
    found: list[Change] = []
    for name in Recipe.model_fields:
        was, now = getattr(old, name), getattr(new, name)
        if name in ORIGINS or was == now or (name == "data" and same_split(old, new)):
            continue
        if isinstance(was, Setting) and isinstance(now, Setting) and was.name == now.name:
            arguments = dict.fromkeys((*was.args, *now.args))
            found += [
                Change(f"{name}.{key}", _text(was.args.get(key)), _text(now.args.get(key)))
                for key in arguments
                if was.args.get(key) != now.args.get(key) and not (folder and (name, key) == ("data", "path"))
            ]
        else:
            found.append(Change(name, _text(was), _text(now)))
    return found


def _text(value: Any) -> str:
    return "none" if value in (None, ()) else setting_text(value, full=True)


# --- the spec ------------------------------------------------------------------------------------


def spec_hashes(graph: Graph) -> dict[str, Any]:
    """Return the hash of the text of a spec, and those of the files that it uses, as recorded in `result.json`."""

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    return {"sha256": digest(graph.text), "files": {name: digest(text) for name, text in sorted(graph.files.items())}}


def _edited_files(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the names of the files whose text has changed."""
    before, after = old.get("files", {}), new["files"]
    files = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return [*(["spec.cnn"] if old.get("sha256") != new["sha256"] else []), *files]


def network_changes(old: Graph, new: Graph) -> list[Change]:
    """Return the differences between two networks."""
    if structure(old) == structure(new):
        return []
    found = [Change(change.path, change.before or None, change.after or None) for change in compare(old, new).changes]
    if found:
        return found
    before, after = _leaves(old.to_json()), _leaves(new.to_json())
    names = dict.fromkeys((*before, *after))
    return [Change(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def _leaves(value: Any, path: str = "network") -> dict[str, str]:
    """Return the plain values in nested data as text, by path."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: text for name, part in items for key, text in _leaves(part, f"{path}.{name}").items()}
    return {path: str(value)}
