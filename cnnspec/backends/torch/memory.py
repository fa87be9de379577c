"""Memory of a machine that is too small for a network."""

from __future__ import annotations

import re

import torch

from cnnspec.diagnostics import CnnspecError, failure, one_line
from cnnspec.ir import Graph
from cnnspec.ops.base import FLOAT
from cnnspec.resources import machine_memory

_OUT_OF_MEMORY = re.compile(r"can't allocate memory|could not create a primitive(?! descriptor)")
"""Error messages of torch on a CPU and of oneDNN, which reports no reason."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a failed allocation on a GPU or CPU, and release cached GPU memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def check_weights_fit(graph: Graph) -> None:
    """Check that the weights of a network fit into the memory of this machine, unless they are on another device.

    An allocation beyond the memory of the machine need not fail: the system may end the process instead.

    Raises:
        CnnspecError: E0513 if they do not fit.
    """
    needed = FLOAT * graph.parameter_count
    if torch.get_default_device().type == "cpu" and needed > machine_memory():
        sizes = f"{needed / 2**30:,.1f} GiB of weights do not fit into the {machine_memory() / 2**30:,.1f} GiB"
        raise failure("E0513", f"out of memory: {sizes} of this machine", help="use a smaller network")


def out_of_memory(error: BaseException) -> CnnspecError:
    """Return the diagnostic of a failed allocation."""
    help = "write `accumulate 2` or more in the recipe, or use a smaller network or image size"
    return failure("E0513", "out of memory", notes=[one_line(error)], help=help)
