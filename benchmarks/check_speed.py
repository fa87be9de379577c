"""Time to compute shapes and counts of a network, compared with torch and torchinfo.

In turns, in one process, warm: from the text of a spec to the checked network with its parameters, multiply-adds and
floating-point operations; the network of torchvision built on the meta device and run under torch's FlopCounterMode;
and the same network built and handed to torchinfo. Each result is held against the others before a time is taken.

    python benchmarks/check_speed.py --repeats 9
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode
from turns import in_turns

from cnnspec.analysis.cost import count
from cnnspec.compiler import compile_source, locate
from cnnspec.diagnostics import Source

NAMES = ("vgg16", "resnet50", "densenet201")


def from_text(name: str) -> Callable[[], int]:
    path, shown = locate(name)
    text = path.read_text("utf-8")

    def run() -> int:
        graph = compile_source(Source(shown, text), path).require_graph()
        assert graph.parameter_count > 0
        return count(graph).inference_flops

    return run


def with_flop_counter(name: str) -> Callable[[], int]:
    def run() -> int:
        with torch.device("meta"):
            network = torchvision.models.get_model(name).eval()
            image = torch.empty(1, 3, 224, 224)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(image)
        return counter.get_total_flops()

    return run


def with_torchinfo(name: str) -> Callable[[], int] | None:
    try:
        from torchinfo import summary
    except ModuleNotFoundError:
        return None

    def run() -> int:
        network = torchvision.models.get_model(name)
        return summary(network, input_size=(1, 3, 224, 224), verbose=0).total_params

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="number of turns; medians are printed")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu on a machine with other load")
    parser.add_argument("names", nargs="*", default=NAMES, help="networks that cnnspec and torchvision have")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.repeats} repeats, {args.clock} clock")
    print(f"{'network':14} {'cnnspec':>10} {'meta + FlopCounterMode':>24} {'ratio':>7} {'torchinfo':>11} {'ratio':>7}")
    for name in args.names:
        ways = [from_text(name), with_flop_counter(name)]
        if ways[0]() != ways[1]():
            sys.exit(f"{name}: {ways[0]():,} operations here, {ways[1]():,} by FlopCounterMode")
        if (third := with_torchinfo(name)) is not None:
            ways.append(third)
        ours, *others = map(statistics.median, in_turns(ways, args.repeats, clock))
        shown = [f"{ours * 1e3:>7.1f} ms", f"{others[0] * 1e3:>21.1f} ms {others[0] / ours:>7.1f}"]
        if len(others) > 1:
            shown.append(f"{others[1] * 1e3:>8.1f} ms {others[1] / ours:>7.0f}")
        print(f"{name:14}", *shown)


if __name__ == "__main__":
    main()
