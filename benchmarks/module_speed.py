"""Time of a forward pass and a training step of built networks, compared with hand-written ones.

Both run in one process, in turns, with the same weights; their outputs are checked to be equal first. The ratio is
the twin's time over the built network's: above 1 the built network is the faster one.

    python benchmarks/module_speed.py --batch 128 --repeats 9
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from turns import in_turns
from twins import TWINS

from cnnspec import build
from cnnspec.training.loop.machine import keep_memory


def hand_over(twin: nn.Module, network: nn.Module) -> None:
    """Copy the weights of the hand-written network to the built one, by order."""
    ours, theirs = network.state_dict(), twin.state_dict()
    if [v.shape for v in ours.values()] != [v.shape for v in theirs.values()]:
        raise SystemExit("the networks have different weights")
    network.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))


def forward(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x)


def step(network: nn.Module, x: Tensor) -> Tensor:
    network.zero_grad(set_to_none=True)
    y = network(x)
    y.square().mean().backward()
    return y


def measure(
    run: Callable[[nn.Module, Tensor], Tensor],
    networks: list[nn.Module],
    x: Tensor,
    repeats: int,
    clock: Callable[[], float],
) -> tuple[float, float, float]:
    """Return the median seconds of both networks, and the median of their ratio per turn."""
    seconds = in_turns([partial(run, network, x) for network in networks], repeats, clock)
    ratios = [theirs / ours for theirs, ours in zip(*seconds, strict=True)]
    return statistics.median(seconds[0]), statistics.median(seconds[1]), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128, help="images at once")
    parser.add_argument("--repeats", type=int, default=9, help="number of runs; medians are printed")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves torch's choice")
    parser.add_argument("--channels-last", action="store_true", help="weights and images in channels_last")
    parser.add_argument("--plain-malloc", action="store_true", help="leave the allocator as it is")
    parser.add_argument("names", nargs="*", default=list(TWINS), help="networks, all by default")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu on a machine with other load")
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    if not args.plain_malloc:
        keep_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    x = torch.randn(args.batch, 3, 32, 32).to(memory_format=layout)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {args.batch}, {args.repeats} repeats")
    print(f"{'network':<18}{'pass':<18}{'twin ms':>10}{'built ms':>10}{'ratio':>8}")
    for name in args.names:
        twin, network = TWINS[name]().to(memory_format=layout), build(name).to(memory_format=layout)
        hand_over(twin, network)
        for what, run, training in (("forward", forward, False), ("forward+backward", step, True)):
            twin.train(training)
            network.train(training)
            if not torch.allclose(run(twin, x), run(network, x), rtol=1e-4, atol=1e-5):
                sys.exit(f"{name}: the outputs differ")
            theirs, ours, ratio = measure(run, [twin, network], x, args.repeats, clock)
            print(f"{name:<18}{what:<18}{theirs * 1e3:>10.1f}{ours * 1e3:>10.1f}{ratio:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
