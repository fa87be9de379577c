"""Write the JSON Schemas of `check --json`, `summary --json` and `result.json` to `docs/reference/schemas`.

The schema of `result.json` is made from the Pydantic model that reads it. Objects are open, because keys can be added
without another version; the tests close them, so that a new key fails until it is described here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference" / "schemas"
sys.path.insert(0, str(ROOT))

Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Code = Annotated[str, Field(pattern="^[EW][0-9]{4}$")]
Place = Annotated[Positive | None, Field(description="Counted from 1; null for a whole file.")]


class _Object(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


# --- check --json --------------------------------------------------------------------------------


class _Place(_Object):
    file: str
    line: Positive
    column: Positive
    end_line: Positive
    end_column: Positive
    """The column after the last character."""


class Edit(_Place):
    """A span of a file and the text that replaces it. Columns are counted in Unicode characters, from 1."""

    text: str


class Label(_Place):
    """Another place that is involved."""

    text: str
    """The text of the label, with the shape at the place."""


class Fix(_Object):
    """A change of the text that was tested and removes the error."""

    help: str
    """The change in words."""
    certain: bool
    """Whether `--fix` applies it."""
    edits: list[Edit]


class Diagnostic(_Object):
    """An error or a lint."""

    code: Code
    """The code, which `cnnspec explain` explains."""
    severity: Literal["error", "warning"]
    message: str
    """The problem."""
    file: str | None
    """The file as the user named it."""
    line: Place
    column: Place
    end_line: Place
    end_column: Place
    caption: str
    """The text under the caret, or an empty text."""
    labels: list[Label]
    notes: list[str]
    """The reasons."""
    help: str | None
    """The action to take."""
    fixes: list[Fix]
    """Changes that remove the error, the best one first."""


class Lengths(_Object):
    """A set of heights or widths: those in `few`, and each `n` from `from` on whose `n % period` is in `residues`."""

    few: list[Natural]
    first: Natural = Field(default=0, alias="from")
    period: Positive = 1
    residues: list[Natural] = []


class Sizes(_Object):
    """A rectangle of image sizes: any height of one set with any width of the other."""

    height: Lengths
    width: Lengths


class ImageSizes(_Object):
    """The image sizes that the network accepts."""

    words: str
    """The set as it is printed."""
    ranges: list[Sizes] | None
    """The set; null if it is not known."""
    in_evaluation: ImageSizes | None = None
    """The set in evaluation, if it differs."""


class CheckedFile(_Object):
    """The result for one file. The keys from `name` on exist if it is a network without errors."""

    file: str
    ok: bool
    """Whether there are no errors."""
    diagnostics: list[Diagnostic]
    fixed: list[Diagnostic] = []
    """The diagnostics that `--fix` fixed; only with `--fix`."""
    name: str = ""
    input: Annotated[list[Positive], Field(min_length=3, max_length=3)] = []
    """Channels, height and width of the image; of several images, all channels."""
    images: dict[str, Annotated[list[Positive], Field(min_length=3, max_length=3)]] = {}
    """The shapes of several images by name."""
    output: Annotated[list[Positive], Field(min_length=1, max_length=3)] = []
    """The output shape of one image; of named outputs, that of the last one that is computed."""
    outputs: dict[str, Annotated[list[Positive], Field(min_length=1, max_length=3)]] = {}
    """The shapes of the named outputs of one image."""
    parameters: Natural = 0
    macs: Natural = 0
    sizes: ImageSizes = ImageSizes(words="", ranges=None)


class CheckReport(_Object):
    """The output of `cnnspec check --json`."""

    version: Literal[1]
    files: list[CheckedFile]


# --- summary --json ------------------------------------------------------------------------------

Amount = Annotated[int, Field(ge=0)] | Annotated[str, Field(description="A function of the image size: `64*H*W`.")]
Shape = Annotated[list[Amount], Field(min_length=1, max_length=3)]
Side = Annotated[Natural | None, Field(description="Null for the whole image.")]


class _Figures(_Object):
    parameters: Natural = 0
    """The number of learned weights."""
    macs: Amount = 0
    """Multiply-adds of convolutions and linear layers, without auxiliary heads."""
    flops: Amount = 0
    """Floating-point operations of the forward pass, without auxiliary heads."""
    backward_flops: Amount = 0
    """Floating-point operations of the backward pass."""
    activation_bytes: Amount = 0
    """The memory of all outputs."""
    saved_bytes: Amount = 0
    """The memory of tensors that are saved for the backward pass."""
    peak_bytes: Natural = 0
    """The peak memory of live tensors during inference."""
    field: Annotated[list[Side], Field(min_length=2, max_length=2)] = []
    """The theoretical receptive field, height and width."""
    center_field: Annotated[list[Natural], Field(min_length=2, max_length=2)] | None = None
    """The part of the image on which the center of the map depends; null if it was not computed.

    It is 0x0 in a gap between the pixels of a transposed convolution.
    """
    stride: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)] = []
    """Image pixels per position of the map, height and width."""
    depth: Natural = 0
    """Convolutions and linear layers on the longest path from the image."""


class Output(_Object):
    """A named output. Its keys besides `name` are the selected columns."""

    name: str
    output_shape: Shape = []
    field: Annotated[list[Side], Field(min_length=2, max_length=2)] = []
    center_field: Annotated[list[Natural], Field(min_length=2, max_length=2)] | None = None
    stride: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)] = []
    depth: Natural = 0


class Module(_Figures):
    """A module. Its keys besides `path` are the selected columns."""

    path: str
    kind: str = ""
    """The block or operator."""
    output_shape: Shape = []


class Declared(_Object):
    """The image size that the spec declares, with `--symbolic`."""

    input_shape: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    figures: list[str]
    """The keys of the figures that are for this size."""


class LargestBatch(_Object):
    """The largest batch that trains in the memory of `--max-batch`, in bytes."""

    memory: Natural
    """The available memory."""
    batch: Natural
    """The number of images. If it is 0, not even one image fits, and the other values are for one image."""
    weights: Natural
    gradients: Natural
    optimizer: Natural
    activations: Natural
    total: Natural


class Summary(_Figures):
    """The summary of a network. The selected columns determine which figures exist."""

    name: str
    batch: Positive
    input_shape: Shape
    """The shape of the image; of several images, with all channels."""
    images: dict[str, Shape] = {}
    """The shapes of several images by name."""
    output_shape: Shape
    """The output shape; of named outputs, that of the last one that is computed."""
    outputs: list[Output] = []
    """The named outputs, if the spec has any."""
    declared: Declared | None = None
    training_flops: Amount
    """Floating-point operations of a training step."""
    modules: list[Module]
    """The modules; a module comes before its submodules."""
    max_batch: LargestBatch | None = None


class SummaryReport(RootModel[Summary | list[Summary]]):
    """The output of `cnnspec summary --json`: an object, or a list of objects for several files or a folder."""


# --- result.json ---------------------------------------------------------------------------------


def result_model() -> type[BaseModel]:
    """Return the model of `result.json` as it is written; the model that reads it checks some parts later."""
    from cnnspec.recipe import Recipe
    from cnnspec.training.data.identity import DataIdentity
    from cnnspec.training.data.preprocessing import _Stored
    from cnnspec.training.runs.json_files import FORMAT_VERSION, RunResult

    class Preprocessing(_Stored):
        """Resizing and normalization."""

        origins: dict[str, str]

    class Result(RunResult):
        """The contents of `result.json` in the folder of a run."""

        format_version: Literal[FORMAT_VERSION]  # type: ignore[valid-type]
        state: Literal["running", "finished", "interrupted", "failed", "pruned"]
        data_identity: DataIdentity | None
        preprocessing: Preprocessing
        recipe: Recipe

    return Result


OPTIONAL = {
    "CheckedFile": ("fixed", "name", "input", "images", "output", "outputs", "parameters", "macs", "sizes"),
    "Lengths": ("from", "period", "residues"),
    "ImageSizes": ("in_evaluation",),
    "Summary": (*_Figures.model_fields, "images", "outputs", "declared", "max_batch"),
    "Module": (*_Figures.model_fields, "kind", "output_shape"),
    "Output": ("output_shape", "field", "center_field", "stride", "depth"),
    "Setting": ("base",),
}
"""The keys that may be missing. All others are always written."""


class _Schema(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def generate(self, schema: Any, mode: Any = "validation") -> JsonSchemaValue:
        found = super().generate(schema, mode)
        for name, part in ({found.get("title", ""): found} | found.get("$defs", {})).items():
            part.pop("additionalProperties", None)
            if "properties" in part:
                for entry in part["properties"].values():
                    entry.pop("default", None)
                part["required"] = [key for key in part["properties"] if key not in OPTIONAL.get(name, ())]
            summary = " ".join(part["description"].partition("\n\n")[0].split())
            part["description"] = summary.partition("; an entry that")[0].removesuffix(".") + "."
        return {"$schema": self.schema_dialect, **found}


def schemas() -> dict[str, Any]:
    """Return the schemas by the name of their file."""
    models = {"check": CheckReport, "summary": SummaryReport, "result": result_model()}
    return {f"{name}.json": TypeAdapter(model).json_schema(schema_generator=_Schema) for name, model in models.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        (FOLDER / name).write_text(json.dumps(schema, indent=2) + "\n", "utf-8")
