"""Export a network to a file for another runtime, and compare the file with the network before it is written.

The exported file is loaded by its own runtime. Only if it agrees with the torch module is it moved to its place.
"""

from __future__ import annotations

import copy
import itertools
import json
import keyword
import os
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

import cnnspec
from cnnspec import api
from cnnspec.backends import onnx, pt2
from cnnspec.backends.source import write_source
from cnnspec.backends.torch.folding import fold as fold_norms
from cnnspec.backends.torch.module import Network, split_images, to_module
from cnnspec.diagnostics import CnnspecError, failure, named, one_line, reason_of
from cnnspec.files import is_weights_file, write_together
from cnnspec.inference.export_options import find_fault, read_axes
from cnnspec.inference.graph_input import GraphInput
from cnnspec.inference.network import find_weights, load_module, load_run
from cnnspec.ir import Graph
from cnnspec.lints.text import MODULE_WORDS
from cnnspec.semantics.recipe_rules import no_classifier
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.datasets import SOURCES
from cnnspec.training.data.preprocessing import Preprocessing, Statistics, choose_preprocessing
from cnnspec.training.loop.about import about_weights, describe

Format = Literal["torch", "pt2", "onnx"]
Run = Callable[..., Any]
TOLERANCES = {"torch": 0.0, "pt2": 1e-5, "onnx": 1e-4, "fold": 1e-4, "half": 2e-2}
"""The largest accepted difference of a logit in relation to the largest one, by format and by option."""
_UNREACHABLE = {*dir(fx.GraphModule(nn.Module(), fx.Graph())), *MODULE_WORDS, *keyword.kwlist}
"""Labels that the code of a `GraphModule` cannot write as an attribute."""
_NOT_NORMALIZED = (
    "the normalization of the training images is unknown, so the file does not contain the preprocessing: "
    "state it as in training, for example with `--set normalize=imagenet`"
)
_LEAST = 2
"""The least variable height and width: torch.export treats a size of 1 as a constant."""


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        files: The files that were written.
        difference: The largest difference of a logit from that of the torch module.
        relative: The same in relation to the largest logit.
        tolerance: The largest accepted relative difference.
        probability: The largest difference of a probability.
        images: The number of images that were compared.
        levels: With preprocessing, the largest difference of a resized pixel from that of Pillow's algorithm, of 255.
        seconds: The duration.
        notes: What to know about the file.
    """

    files: tuple[str, ...]
    difference: float
    relative: float
    tolerance: float
    probability: float
    images: int
    levels: int | None
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**vars(self), "files": list(self.files), "notes": list(self.notes)}


@dataclass
class _Source:
    """A network to export, with what is known about it."""

    graph: Graph
    network: Network
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    notes: list[str] = field(default_factory=list[str])


def export_network(
    source: str | Path,
    file: str | Path,
    to: Format,
    *,
    weights: str | Path | None = None,
    fold: bool = False,
    half: bool = False,
    dynamic: str | Sequence[str] = (),
    with_preprocessing: bool = False,
    match: str = "name",
    offline: bool = False,
    allow_huge: bool = False,
    **params: Any,
) -> Export:
    """Export a network, and verify the file in its own runtime.

    Args:
        source: A run folder or a weights file of cnnspec; or a spec, which has random weights without `weights`.
        file: The file to write. Next to the `.py` file of `torch`, the weights are written to a `.pt` file.
        to: `torch` for Python source that imports only torch, `pt2` for `torch.export`, or `onnx`.
        weights: Weights for a spec.
        fold: Fold batch normalization into the layer before it.
        half: Compute in float16; images and logits stay float32, except with `torch`.
        dynamic: Axes of the input whose size may vary: `batch`, `size`, or `batch,size`.
        with_preprocessing: Start from bytes `[N, C, h, w]` of any size: resize and normalize in the graph.
        match: How `weights` are matched: by `name`, by `order`, or by a map (the path of a JSON file).
        offline: Never download weights.
        allow_huge: Allow more than 10,000,000,000 parameters, and tensors of more than 100,000,000,000 elements.
        **params: Values for the parameters of a spec.

    Raises:
        CnnspecError: E0522 if the network cannot be exported, the file computes something else, or an option has no
            effect; E0507 if a package is not installed, E0506 if the file cannot be written, and all errors of
            `load_run` and `build`. If the normalization of the training images is unknown, this is a note, and an
            error (E0511) only `with_preprocessing`.
    """
    begin = time.perf_counter()
    file, axes = Path(file), read_axes(dynamic)
    if fault := find_fault(to, axes, with_preprocessing, match, weights is not None):
        raise failure("E0522", fault[0], help=fault[1])
    if to == "onnx":
        onnx.require_packages()
    inputs = [source, *([] if weights is None else [weights])]
    _check_writable(file, inputs)
    paths = [file]
    if to == "torch":
        paths.append(_weights_path(file, inputs))
    found = _read(source, weights, match, offline, allow_huge, params)
    if with_preprocessing and found.graph.images:
        message = f"`--with-preprocessing` requires a single image, but the network has {named([*found.graph.images])}"
        raise failure("E0522", message, help="omit it, and pass normalized images")
    if with_preprocessing and found.preprocessing is None:
        help = "state it as in training, for example with `--set normalize=imagenet`"
        raise failure("E0511", "the normalization of the training images is unknown", help=help)
    network = fold_norms(found.network) if fold else found.network
    options = {"fold": fold, "half": half, "dynamic": axes, "with_preprocessing": with_preprocessing}
    case = _Case(found, network, options)
    write = {"torch": case.source, "pt2": case.pt2, "onnx": case.onnx}[to]
    contents, compared = write(
        max(TOLERANCES[name] for name in (to, *(name for name in ("fold", "half") if options[name])))
    )
    try:
        write_together(dict(zip(paths, contents, strict=True)))
    except OSError as error:
        message = f"cannot write `{error.filename or file}`: {error.strerror}"
        raise failure("E0506", message, file=str(file), help="choose another file") from None
    seconds = time.perf_counter() - begin
    return Export(tuple(map(str, paths)), **compared, seconds=seconds, notes=tuple(found.notes))


def _weights_path(file: Path, inputs: Sequence[str | Path]) -> Path:
    """Return the file for the weights of Python source. It replaces only the weights of an earlier export."""
    path = file.with_suffix(".pt")
    _check_writable(path, inputs)
    if path == file or (os.path.lexists(path) and not os.path.lexists(file)):
        reason = "it is also the name of the source" if path == file else f"it exists, and `{file.name}` does not"
        message = f"cannot write the weights to `{path.name}`: {reason}"
        raise failure("E0506", message, file=str(path), help="choose another name for the Python file")
    return path


def _check_writable(file: Path, inputs: Sequence[str | Path]) -> None:
    """Raise an error if a file cannot be created or is an input, before the export takes time."""
    reason: str | None = None
    try:
        reason = "it is a folder" if file.is_dir() else None if file.parent.is_dir() else "its folder does not exist"
        if reason is None and not os.access(file.parent, os.W_OK):
            reason = "its folder is not writable"
        file.lstat()
        if any(os.path.exists(path) and os.path.samefile(path, file) for path in inputs):
            reason = "the network is read from it"
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else one_line(error)
    if reason is not None:
        raise failure("E0506", f"cannot write `{file.name}`: {reason}", file=str(file), help="choose another file")


def _read(
    source: str | Path, weights: str | Path | None, match: str, offline: bool, allow_huge: bool, params: dict[str, Any]
) -> _Source:
    """Read a network with its weights."""
    if Path(source).is_dir() or is_weights_file(source):
        what = "weights" if weights is not None else f"`{next(iter(params))}`" if params else None
        if what is not None:
            message = f"cannot set {what}: `{source}` has a network with weights of its own"
            raise failure(
                "E0217", message, file=str(source), help="pass a spec instead, and its weights with `--weights`"
            )
        trained = load_run(source, offline=offline, allow_huge=allow_huge)
    else:
        graph = api.load(source, allow_huge=allow_huge, **params)
        if weights is None:
            notes = ["the weights are random: pass trained ones with `--weights FILE`"]
            return _Source(graph, to_module(graph).eval(), (), _stated_preprocessing(graph), notes)
        weights, _ = find_weights(weights, graph, allow_huge, {})
        is_classifier = not any(no_classifier(graph))
        if not (is_classifier and (about_weights(weights, graph).preprocessing or _stated_preprocessing(graph))):
            notes = [_NOT_NORMALIZED] if is_classifier else []
            module = load_module(graph, weights, match, offline)
            return _Source(graph, module, (), _stated_preprocessing(graph), notes)
        trained = load_run(weights, spec=graph, match=match, offline=offline, allow_huge=allow_huge)
    network: Any = trained.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return _Source(trained.graph, network.eval(), trained.classes, trained.preprocessing)


def _stated_preprocessing(graph: Graph) -> Preprocessing | None:
    """Return the preprocessing that a recipe states, or None if it depends on training images."""

    def unknown() -> Statistics:
        raise LookupError

    try:
        return None if graph.images else choose_preprocessing(graph.recipe, graph.input_shape, unknown)[0]
    except LookupError:
        return None


# --- the formats ---------------------------------------------------------------------------------


class _Case:
    """One export: writes the contents of each format, and compares them with the network."""

    def __init__(self, found: _Source, network: Network, options: dict[str, Any]) -> None:
        self._found, self._options = found, options
        exported = _with_plain_names(network)
        if options["half"]:
            same = exported is network
            network = copy.deepcopy(network).half()
            exported = network if same else exported.half()
        self._graph, self._network = network.graph, network
        self._module: nn.Module = _Half(exported) if options["half"] else exported
        self._expected: nn.Module = found.network
        if options["with_preprocessing"]:
            assert found.preprocessing is not None
            self._module = GraphInput(self._module, found.preprocessing).eval()
            self._expected = GraphInput(found.network, found.preprocessing).eval()

    def source(self, tolerance: float) -> tuple[list[bytes], dict[str, Any]]:
        """Return the source and the weights, and the comparison."""
        found = self._found
        constants: dict[str, Any] = {"CLASSES": list(found.classes)} if found.classes else {}
        constants |= {"PREPROCESSING": found.preprocessing.to_json()} if found.preprocessing is not None else {}
        weights = BytesIO()
        torch.save(self._network.state_dict(), weights)
        weights.seek(0)
        module = types.ModuleType("exported")
        exec(compile(write_source(self._graph, constants), "exported.py", "exec", dont_inherit=True), module.__dict__)
        classes = [value for value in vars(module).values() if getattr(value, "__module__", "") == "exported"]
        loaded: nn.Module = classes[-1]().eval()
        loaded.load_state_dict(torch.load(weights, weights_only=True))
        compared = self._compare(_Half(loaded.half()) if self._options["half"] else loaded, tolerance)
        text = write_source(self._graph, {**constants, "EXPORT": {**self._options, **compared}})
        return [text.encode(), weights.getvalue()], compared

    def pt2(self, tolerance: float) -> tuple[list[bytes], dict[str, Any]]:
        """Return a `.pt2` file and the comparison."""
        program = self._program()
        return self._verified(lambda about: pt2.to_bytes(program, about), pt2.load, tolerance)

    def onnx(self, tolerance: float) -> tuple[list[bytes], dict[str, Any]]:
        """Return an `.onnx` file and the comparison."""
        onnx.check_size(self._module.state_dict().values())
        if "size" in self._options["dynamic"]:
            self._module = _with_exported_pools(self._module)
        inputs, outputs = [*self._graph.images] or [onnx.INPUT], [*self._graph.taps] or [onnx.OUTPUT]
        model = onnx.convert(self._program(), inputs, outputs)
        return self._verified(lambda about: onnx.to_bytes(model, about), onnx.load, tolerance)

    def _verified(
        self, to_bytes: Callable[[str], bytes], load: Callable[[bytes], Run], tolerance: float
    ) -> tuple[list[bytes], dict[str, Any]]:
        """Compare a file without metadata, and return it with the result in its metadata."""
        compared = self._compare(_safely(load)(to_bytes("{}")), tolerance)
        found = self._found
        about = describe(self._graph, found.classes, found.preprocessing) if found.preprocessing is not None else {}
        about |= {"network": self._graph.name, "spec": self._graph.text, "input_shape": list(self._graph.input_shape)}
        about |= {"options": self._options, "compared": compared, "cnnspec": cnnspec.__version__}
        content = to_bytes(json.dumps(about, sort_keys=True))
        self._compare(_safely(load)(content), tolerance, images=1)
        return [content], compared

    def _program(self) -> Any:
        example = next(self._images(2 if "batch" in self._options["dynamic"] else 1))
        return pt2.trace(self._module, *self._arguments(example), dynamic=self._dimensions())

    def _arguments(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the arguments of the network for a batch with the channels of all its images."""
        return tuple(part.contiguous() for part in split_images(self._graph, images))

    def _dimensions(self) -> dict[int, Any]:
        """Return the axes whose size may vary."""
        found: dict[int, Any] = {}
        if "batch" in self._options["dynamic"]:
            found[0] = pt2.dimension("batch", 1)
        if self._options["with_preprocessing"]:
            found |= {axis: pt2.dimension(name, _LEAST) for axis, name in ((2, "height"), (3, "width"))}
        elif "size" in self._options["dynamic"]:
            for axis, (name, sizes) in enumerate(zip(("height", "width"), self._ranges(), strict=True), 2):
                if sizes is not None:
                    found[axis] = pt2.dimension(name, *sizes)
        return found

    def _ranges(self) -> list[tuple[int, int | None, int] | None]:
        """Return the least height and width, the greatest, and the number that they are multiples of.

        An axis of one size is None. Of periodic sizes, the file accepts the multiples of the period.

        Raises:
            CnnspecError: E0522 if the network accepts sizes that contain no such range, or a single one.
        """
        sizes = self._graph.sizes.in_evaluation
        ranges: list[tuple[int, int | None, int] | None] = []
        for axis in sizes.rectangles[0] if sizes.rectangles else ():
            if axis.finite:
                least, most, step = axis.few[0], axis.few[-1], 1
                whole = len(axis.few) == most - least + 1 and most > least
            else:
                most, step, whole = None, axis.period, 0 in axis.residues
                least = -(-max(axis.start, 1) // step) * step
                while least > step and least - step in axis:
                    least -= step
                if whole and (axis.residues != (0,) or any(n < least or n % step for n in axis.few)):
                    self._note(f"the file takes multiples of {step} from {least}; the network accepts {sizes.words()}")
            least = -(-max(least, _LEAST) // step) * step
            if whole and (most is None or most - least >= step):
                ranges.append((least, most, step))
            elif axis.finite and len(axis.few) == 1:
                ranges.append(None)
        if len(ranges) < 2 or ranges == [None, None]:
            message = "the image size cannot vary: the sizes that the network accepts contain no range"
            note = f"accepted sizes: {sizes.words()}"
            raise failure("E0522", message, notes=[note], help="remove `size` from `--dynamic`")
        return ranges

    def _note(self, text: str) -> None:
        if text not in self._found.notes:
            self._found.notes.append(text)

    # --- comparison ------------------------------------------------------------------------------

    def _images(self, batch: int) -> Iterator[Tensor]:
        """Yield batches of real images and of noise, in the input format and in sizes that the file accepts."""
        channels, height, width = self._graph.input_shape
        raw = torch.from_numpy(SOURCES["fashion_mini"](Path(), True, False).images[:6])[:, None].expand(
            -1, channels, -1, -1
        )
        generator = torch.Generator().manual_seed(0)
        sizes = [(height, width)]
        if self._options["with_preprocessing"]:
            sizes = [(height + 13, width + 5), (28, 28), (height, 2 * width + 1)]
        elif "size" in self._options["dynamic"]:
            axes = [*zip((height, width), self._ranges(), strict=True)]
            declared = [
                size if found is None else -(-max(size, found[0]) // found[2]) * found[2] for size, found in axes
            ]
            least = [size if found is None else found[0] for size, found in axes]
            larger = [
                size if found is None else size + found[2] for size, (_, found) in zip(declared, axes, strict=True)
            ]
            accepts = self._graph.sizes.in_evaluation.accepts
            sizes = [(h, w) for h, w in (declared, least, larger) if accepts(h, w)]
        preprocessing = self._found.preprocessing or Preprocessing(
            (height, width), (0.5,) * channels, (0.25,) * channels
        )
        for size in sizes:
            fitted = Preprocessing(size, preprocessing.mean, preprocessing.std)
            noise = torch.randint(0, 256, (6, channels, *size), generator=generator, dtype=torch.uint8)
            for images in (fitted.fit_images(raw.contiguous()), noise):
                if not self._options["with_preprocessing"]:
                    images = Preprocess(fitted)(images).contiguous()
                yield from (images[:batch] if "batch" in self._options["dynamic"] else images).split(batch)

    def _compare(self, run: Run, tolerance: float, images: int | None = None) -> dict[str, Any]:
        """Compare a loaded file with the network.

        Raises:
            CnnspecError: E0522 if the difference exceeds the tolerance.
        """
        difference = relative = probability = 0.0
        count, levels = 0, None
        batches = [1, 2, 3] if "batch" in self._options["dynamic"] else [1]
        with torch.no_grad(), pt2.quiet():
            for batch in batches:
                for given in self._images(batch):
                    arguments = self._arguments(given)
                    expected, found = _named(self._expected(*arguments)), _named(_safely(run)(*arguments))
                    if [*found] != [*expected]:
                        raise self._refusal(f"the outputs {[*found]} differ from {[*expected]}")
                    for name in expected:
                        largest = self._differences(expected[name], found[name].float())
                        difference, relative, probability = map(max, (difference, relative, probability), largest)
                    count += len(given)
                    if isinstance(self._expected, GraphInput):
                        fitted = self._expected.preprocessing.fit_images(given).float()
                        levels = max(levels or 0, int((self._expected.resized(given) - fitted).abs().max()))
                    if images is not None and count >= images:
                        break
        if relative > tolerance:
            raise self._refusal(f"a logit differs by {relative:.2g} of the largest one, more than {tolerance:g}")
        return {
            "difference": difference,
            "relative": relative,
            "tolerance": tolerance,
            "probability": probability,
            "images": count,
            "levels": levels,
        }

    def _differences(self, expected: Tensor, found: Tensor) -> tuple[float, float, float]:
        """Return the largest difference of a number, the same in relation to the largest one, and of a probability."""
        if not expected.isfinite().all():
            help = "load trained weights, with `--weights`: random ones make the values of a very deep network overflow"
            raise self._refusal("the output of the network itself contains NaN or Inf", help)
        if not found.isfinite().all():
            raise self._refusal("its output contains NaN or Inf")
        if found.shape != expected.shape:
            raise self._refusal(f"the output {list(found.shape)} differs from {list(expected.shape)}")
        largest = float((found - expected).abs().max())
        probability = float((found.softmax(1) - expected.softmax(1)).abs().max())
        return largest, largest / max(float(expected.abs().max()), 1e-6), probability

    def _refusal(self, note: str, help: str | None = None) -> CnnspecError:
        if self._options["half"]:
            help = "export it without `--half`"
        return failure("E0522", "the exported network cannot be verified", notes=[note], help=help)


def _named(output: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a network by name; the only one is called as in ONNX files."""
    return {onnx.OUTPUT: output} if isinstance(output, Tensor) else output


def _safely(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of another runtime whose errors are diagnostics."""

    def call(*given: Any) -> Any:
        try:
            return function(*given)
        except Exception as error:  # noqa: BLE001 - a runtime fails in many ways
            help = "export it to another format, or without `--dynamic`"
            raise failure(
                "E0522", "the exported file fails in its runtime", notes=[pt2.reason(error)], help=help
            ) from None

    return call


def _with_plain_names(network: Network) -> Network:
    """Return a network without labels that torch.export cannot reach: attributes of its modules, and keywords."""
    parts = {part for node in network.graph for part in node.path.split(".")}
    names: dict[str, str] = {}
    for part in sorted(part for part in parts if part in _UNREACHABLE or part.startswith("_")):
        names[part] = next(name for n in itertools.count(1) if (name := f"{part.lstrip('_')}{'_' * n}") not in parts)
        parts.add(names[part])
    if not names:
        return network
    paths = (".".join(names.get(part, part) for part in node.path.split(".")) for node in network.graph)
    nodes = tuple(replace(node, path=path) for node, path in zip(network.graph, paths, strict=True))
    renamed = to_module(replace(network.graph, nodes=nodes)).eval()
    renamed.load_state_dict(dict(zip(renamed.state_dict(), network.state_dict().values(), strict=True)))
    return renamed


def _with_exported_pools(module: nn.Module) -> nn.Module:
    """Return a module without adaptive pooling, which torch exports to ONNX for constant image sizes only."""
    module = copy.deepcopy(module)
    for path, part in [*module.named_modules()]:
        if isinstance(part, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) and part.output_size not in (1, (1, 1)):
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, _AdaptivePool(part))
    return module


class _AdaptivePool(nn.Module):
    """Adaptive pooling of maps of any size, one axis after the other.

    The window of output i of n covers the rows floor(i L / n) to ceil((i + 1) L / n) of L.
    Source: `torch.nn.AdaptiveAvgPool2d`.
    """

    def __init__(self, pool: nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) -> None:
        super().__init__()
        size: Any = pool.output_size
        self._size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self._takes_mean = isinstance(pool, nn.AdaptiveAvgPool2d)

    def forward(self, x: Tensor) -> Tensor:
        for count in reversed(self._size):
            x = self._pool(x, count).transpose(2, 3)  # the other axis
        return x

    def _pool(self, x: Tensor, count: int) -> Tensor:
        length, index = x.shape[3], torch.arange(count)
        start, end = index * length // count, ((index + 1) * length + count - 1) // count
        rows = torch.arange(length)
        inside = (rows >= start[:, None]) & (rows < end[:, None])  # [n, L]
        if self._takes_mean:
            return x @ (inside.to(x.dtype) / (end - start)[:, None].to(x.dtype)).T
        return x.unsqueeze(3).masked_fill(~inside, -torch.inf).amax(4)  # [N, C, H, n]


class _Half(nn.Module):
    """A network that computes in float16, for images and outputs in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *others: Tensor) -> Tensor | dict[str, Tensor]:
        output = self.network(x.half(), *(other.half() for other in others))
        return output.float() if isinstance(output, Tensor) else {name: part.float() for name, part in output.items()}
