"""Shipped networks against torchvision's: seconds to load, to build, for a forward pass, and for a training step.

Both run in one process, in turns. The ratio is torchvision's time over ours: above 1 ours is the faster one.

    python benchmarks/reference_speed.py --repeats 7
    python benchmarks/reference_speed.py load build
"""

import argparse
import statistics
import time
import warnings
from functools import partial

import torch
from module_speed import measure
from torchvision import models
from turns import in_turns

from cnnspec import build, load
from cnnspec.training.loop.machine import keep_memory

LOADED = ("resnet50", "densenet201", "preact_resnet1001")
BUILT = (
    *("alexnet", "vgg11", "vgg16_bn", "googlenet", "inception_v3", "resnet18", "resnet50", "resnet152"),
    *("resnext50_32x4d", "wide_resnet50_2", "densenet121", "densenet201"),
)
RUN = ("resnet50", "densenet121", "googlenet")


def time_loading(repeats: int) -> None:
    print(f"{'load':<20}{'ms':>8}")
    for name in LOADED:
        (taken,) = in_turns([partial(load, name)], repeats)
        print(f"{name:<20}{1e3 * statistics.median(taken):>8.1f}", flush=True)


def time_building(repeats: int) -> None:
    print(f"\n{'build':<20}{'theirs s':>10}{'ours s':>10}{'ratio':>8}")
    ratios: list[float] = []
    for name in BUILT:
        turns = in_turns([partial(models.get_model, name), partial(build, name)], repeats)
        theirs, ours = map(statistics.median, turns)
        ratios.append(statistics.median(a / b for a, b in zip(*turns, strict=True)))
        print(f"{name:<20}{theirs:>10.3f}{ours:>10.3f}{ratios[-1]:>8.2f}", flush=True)
    print(f"{'median':<40}{statistics.median(ratios):>8.2f}")


def time_running(repeats: int, batch: int, size: int) -> None:
    print(f"\n{f'batch {batch}, {size}x{size}':<20}{'':<18}{'theirs ms':>10}{'ours ms':>10}{'ratio':>8}")
    x = torch.randn(batch, 3, size, size)
    for name in RUN:
        theirs = models.get_model(name, **({"aux_logits": False} if name == "googlenet" else {}))
        ours = build(name) if name != "googlenet" else build(load(name), outputs=["fc"])
        ours.load_state_dict(theirs.state_dict())
        for what, run, training in (("forward", _forward, False), ("forward + backward", _step, True)):
            pair = [network.train(training) for network in (theirs, ours)]
            a, b, ratio = measure(run, pair, x, repeats, time.perf_counter)
            print(f"{name:<20}{what:<18}{a * 1e3:>10.1f}{b * 1e3:>10.1f}{ratio:>8.3f}", flush=True)


def _forward(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        given = network(x)
    return given if isinstance(given, torch.Tensor) else given["fc"]


def _step(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    network.zero_grad(set_to_none=True)
    given = network(x)
    y = given if isinstance(given, torch.Tensor) else given["fc"]
    y.square().mean().backward()
    return y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["load", "build", "run"], help="load, build, run")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_memory()
    torch.manual_seed(0)
    if "load" in options.parts:
        time_loading(options.repeats)
    if "build" in options.parts:
        time_building(options.repeats)
    if "run" in options.parts:
        time_running(options.repeats, options.batch, options.size)


if __name__ == "__main__":
    main()
