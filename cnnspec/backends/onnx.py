"""Convert an exported program to ONNX, and run it with ONNX Runtime."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from cnnspec.backends.pt2 import quiet, reason
from cnnspec.diagnostics import CnnspecError, failure

METADATA = "cnnspec"
"""The key of the metadata."""
INPUT, OUTPUT = "images", "logits"
MAX_BYTES = 2**31
"""The size that an ONNX file must be below."""
_MARGIN = 2**24
"""Bytes for everything but the weights."""


def require_packages() -> None:
    """Check that the packages of the extra `onnx` are installed.

    Raises:
        CnnspecError: E0507 if one is not.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        message = f"export to ONNX requires `{error.name}`, which is not installed"
        raise failure("E0507", message, help="install it with `pip install 'cnnspec[onnx]'`") from None


def check_size(weights: Iterable[Tensor]) -> None:
    """Check that weights fit into an ONNX file, before the conversion takes time.

    Raises:
        CnnspecError: E0522 if they do not.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    if size + _MARGIN >= MAX_BYTES:
        raise _too_large(size)


def _too_large(size: int) -> CnnspecError:
    message = f"an ONNX file has at most {MAX_BYTES / 2**30:g} GiB, and the network needs {size / 2**30:.1f} GiB"
    return failure("E0522", message, help="use `--half`, or `--to pt2`")


def convert(program: ExportedProgram, inputs: Sequence[str] = (INPUT,), outputs: Sequence[str] = (OUTPUT,)) -> Any:
    """Return the ONNX model of a program. Its nodes are named by the path of their module and their operator.

    Args:
        program: The program.
        inputs: The names of its inputs.
        outputs: The names of its outputs.

    Raises:
        CnnspecError: E0522 if torch cannot convert it.
    """
    try:
        with quiet():
            converted = torch.onnx.export(program, verbose=False)
        assert converted is not None
        model = converted.model
        _name_values(model, inputs, outputs)
    except Exception as error:  # noqa: BLE001 - the exporter fails in many ways
        notes = [reason(error)]
        raise failure("E0522", "torch.onnx cannot export the network", notes=notes, help="use `--to pt2`") from None
    used: Counter[str] = Counter()
    for node in model.graph:
        name = f"{_path(node)}/{node.op_type}".removeprefix("/")
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
        node.metadata_props.clear()  # paths of this machine
        for number, value in enumerate(node.outputs):
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.name = f"{node.name}:{number}"
    model.graph.name = "network"
    return model


def _name_values(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the inputs and outputs of a model. Other values with such a name get another one, also inputs."""
    import onnx_ir

    graph = model.graph
    for value in [*graph.initializers.values()]:
        if value.name in (*inputs, *outputs):
            value.name = f"{value.name}:0"
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = f"{name}:0" if name in outputs else name
    for position, name in enumerate(outputs):
        value = graph.outputs[position]
        if value.producer() is None or any(value is other for other in [*graph.outputs][:position]):  # has a name
            copy = onnx_ir.node("Identity", [value])
            graph.append(copy)
            graph.outputs[position] = value = copy.outputs[0]
        value.name = name


def _path(node: Any) -> str:
    """Return the path of the module that a node comes from; of merged nodes, that of the weight."""
    for value in node.inputs[1:]:
        if value is not None and value.is_initializer() and value.name.endswith(".weight"):
            return value.name.removesuffix(".weight")
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return next((scope for scope in reversed(scopes[:-1]) if scope), "")


def to_bytes(model: Any, metadata: str) -> bytes:
    """Return the contents of an `.onnx` file.

    Raises:
        CnnspecError: E0522 if it would have more than 2 GiB.
    """
    import onnx
    import onnx_ir

    model.metadata_props[METADATA] = metadata
    proto = onnx_ir.to_proto(model)
    if proto.ByteSize() >= MAX_BYTES:
        raise _too_large(proto.ByteSize())
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def load(content: bytes) -> Callable[..., Tensor | dict[str, Tensor]]:
    """Return the function of an `.onnx` file, run by ONNX Runtime on the CPU.

    It returns the logits, or a dict if the outputs have other names.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are exceptions, too
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    inputs, names = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))

    def run(*images: Tensor) -> Tensor | dict[str, Tensor]:
        given = {name: part.numpy() for name, part in zip(inputs, images, strict=True)}
        found = dict(zip(names, map(torch.from_numpy, session.run(names, given)), strict=True))
        return found[OUTPUT] if names == [OUTPUT] else found

    return run
