"""Read and write the JSON files of runs and comparisons, which contain the version of their format, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from cnnspec.diagnostics import CnnspecError, failure, one_line
from cnnspec.files import parse_json, read_bytes, read_json, unreadable
from cnnspec.ir import Model
from cnnspec.ir.stored_recipe import checked_recipe, read_recipe
from cnnspec.limits import MAX_EPOCHS, MAX_JSON_BYTES
from cnnspec.recipe import Recipe

FORMAT_VERSION = 1
"""The version of `result.json`, `model.json` and `comparison.json`. A change that readers notice increments it."""
_HELP = "move the folder of the run away, or restore the file"

Number = Annotated[float, Field(allow_inf_nan=False)]
Accuracy = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Text = Annotated[str, Field(max_length=4096)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, defer_build=True)


class RunError(_Part):
    """The error of a failed run."""

    code: Text | None = None
    message: Text | None = None


class Machine(_Part):
    """The machine settings of a run."""

    memory_format: Literal["channels_last", "contiguous"]
    threads: Annotated[int, Field(ge=1, le=4096)]
    origin: Text
    allocator: Text | None = None


class Requested(_Part):
    """The options that a resumed run takes from the run."""

    accelerator: Text = "auto"
    devices: Text | Count = "auto"
    strategy: Text = "auto"
    ddp: dict[
        Literal["static_graph", "gradient_as_bucket_view", "find_unused_parameters", "bucket_cap_mb"], bool | Count
    ] = {}
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    precision: Text | None = None
    deterministic: bool = False


class SpecHashes(_Part):
    """The hashes of the text of a spec and of the files that it uses."""

    sha256: Text
    files: dict[Text, Text]


class ChangedSetting(_Part):
    """A setting that changed when a run was resumed."""

    name: Text
    was: Text | None = None
    now: Text | None = None


class AcceptedChanges(_Part):
    """The changes that were accepted at one resumption."""

    step: Count
    changes: list[ChangedSetting]


class ClassMetrics(_Part):
    """The metrics of a class; None for a quotient with nothing to count."""

    images: Count = 0
    precision: Accuracy | None = None
    recall: Accuracy | None = None
    f1: Accuracy | None = None


class ReliabilityBin(_Part):
    """The images of a range of confidences."""

    images: Count
    confidence: Accuracy
    accuracy: Accuracy


class SplitMetrics(_Part):
    """The metrics of a split besides accuracy and loss."""

    top5_acc: Accuracy | None = None
    calibration_error: Accuracy | None = None
    reliability: list[ReliabilityBin] = []
    classes: list[ClassMetrics] = []


class RunResult(_Part):
    """The contents of `result.json`. Runs of older versions lack some keys."""

    format_version: int
    network: Text | None = None
    state: Text = "unknown"
    error: RunError | None = None
    val_acc: Accuracy | None = None
    test_acc: Accuracy | None = None
    val_loss: Number | None = None
    test_loss: Number | None = None
    metrics: dict[Literal["val", "test"], SplitMetrics] = {}
    parameters: Count | None = None
    macs: Count | None = None
    epochs: Count | None = None
    steps: Count | None = None
    best_epoch: Count | None = None
    seconds: Seconds | None = None
    epoch_seconds: Annotated[list[Seconds], Field(max_length=MAX_EPOCHS)] = []
    seed: Count | None = None
    weights: Text | None = None
    data: Text | None = None
    classes: list[Text] = []
    data_notes: list[str] = []
    data_identity: dict[str, Any] | None = None
    preprocessing: dict[str, Any] = {}
    spec: SpecHashes | None = None
    accelerator: Text | None = None
    devices: Count | None = None
    strategy: Text | None = None
    bn_statistics: Text | None = None
    precision: Text | None = None
    requested: Requested = Requested()
    machine: Machine = Machine(memory_format="channels_last", threads=1, origin="default")
    loggers: dict[Text, Text] = {}
    changes: list[AcceptedChanges] = []
    recipe: dict[str, Any] | None = None
    versions: dict[Text, Text] = {}


class ComparedRow(_Part):
    """A network in `comparison.json`."""

    label: Text
    key: Text


class ComparisonResult(_Part):
    """The part of `comparison.json` that is read again."""

    format_version: int
    rows: list[ComparedRow] = []


class _Versioned(BaseModel):
    model_config = ConfigDict(extra="ignore", defer_build=True)

    format_version: int | None = None


class _StoredModel(Model):
    format_version: int


@cache
def _adapter(schema: type[BaseModel]) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def with_version(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of a file with the version first."""
    return {"format_version": FORMAT_VERSION, **values}


def read_result(folder: Path) -> dict[str, Any]:
    """Read the `result.json` of a run. The result is empty if the file does not exist.

    Raises:
        CnnspecError: E0506 if the file is damaged or has another version.
    """
    found: RunResult | None = _read(folder / "result.json", RunResult)
    return {} if found is None else found.model_dump(exclude_unset=True)


def is_unsupported(folder: Path) -> bool:
    """Return whether the `result.json` of a run has another version."""
    try:
        found = read_json(folder / "result.json", _adapter(_Versioned), MAX_JSON_BYTES, "E0506", inside=folder)
    except CnnspecError:
        return False
    return found is not None and found.format_version not in (None, FORMAT_VERSION)


def read_comparison(path: Path) -> dict[str, str]:
    """Return the keys of the networks of an earlier comparison, by label.

    Raises:
        CnnspecError: E0506 if the file is damaged or has another version.
    """
    found: ComparisonResult | None = _read(path, ComparisonResult)
    return {} if found is None else {row.label: row.key for row in found.rows}


def read_model(folder: Path) -> Model:
    """Read the `model.json` of a run.

    Raises:
        CnnspecError: E0506 if the file is missing, damaged, or has another version.
    """
    path = folder / "model.json"
    found: _StoredModel | None = _read(path, _StoredModel)
    if found is None:
        raise unreadable(path, "the file does not exist", "E0506", _HELP)
    values = {name: getattr(found, name) for name in Model.model_fields}
    try:
        checked_recipe(found.recipe)
    except ValueError as error:
        raise unreadable(path, f"`recipe`: {one_line(error)}", "E0506", _HELP) from None
    return Model.model_construct(**values)


def model_to_json(model: Model) -> str:
    """Return the contents of `model.json`."""
    return json.dumps(with_version(model.model_dump(mode="json")), indent=2)


def recipe_of(result: Mapping[str, Any], folder: Path) -> Recipe:
    """Return the recipe of a result.

    Raises:
        CnnspecError: E0506 if it is missing, or not one of the `train` section.
    """
    try:
        return read_recipe(result.get("recipe"))
    except ValueError as error:
        raise unreadable(folder / "result.json", f"`recipe`: {one_line(error)}", "E0506", _HELP) from None


def _read(path: Path, schema: type[BaseModel]) -> Any:
    """Read a file of a run or a comparison. The version is checked first: other versions have other schemas."""
    data = read_bytes(path, MAX_JSON_BYTES, "E0506", inside=path.parent)
    if data is None:
        return None
    _check_version(parse_json(data, _adapter(_Versioned), path, "E0506", _HELP).format_version, path)
    return parse_json(data, _adapter(schema), path, "E0506", _HELP)


def _check_version(version: int | None, path: Path) -> None:
    if version != FORMAT_VERSION:
        found = "no format version" if version is None else f"format version {version}"
        raise failure(
            "E0506",
            f"unsupported file format: expected format version {FORMAT_VERSION}, found {found}",
            file=str(path),
            help="use the version of cnnspec that wrote the file, or move the run folder elsewhere",
        )
