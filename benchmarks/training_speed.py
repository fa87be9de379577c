"""Compare training with the tutorial's way: input and step in one process, epochs in processes that take turns.

    python benchmarks/training_speed.py input
    python benchmarks/training_speed.py step resnet20
    python benchmarks/training_speed.py epoch resnet20 preact_resnet20 googlenet_cifar densenet_cifar

The tutorial's way is Lightning with automatic optimisation, `self.log` and its progress bar, PIL transforms one image
at a time, a DataLoader with workers, and contiguous memory. `input` prints images per second of the tutorial's
augmentation; `step` the trainer with logging, checkpoints and progress over a bare loop of the same steps; `epoch`
seconds for the same number of steps with everything. CIFAR-10 is read from `--data-dir`, or random images of its size
are used.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import cnnspec.training.runs.train as runs
from cnnspec import Graph, build, load
from cnnspec.diagnostics import CnnspecError
from cnnspec.recipe import Cifar10, HFlip, RandomResizedCrop, Setting
from cnnspec.schema import Interval
from cnnspec.training import TrainOptions, train
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.batches import EpochBatches
from cnnspec.training.data.datasets import ImageData, Pixels, load_data
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.loop.machine import keep_memory
from cnnspec.training.loop.optimizers import optimizer_for
from cnnspec.training.loop.signals import Stopped
from cnnspec.training.runs.loggers import quiet

BATCH = 128
WARM = 3
"""Steps before the first that is timed."""
AUGMENT = (Setting.of(HFlip()), Setting.of(RandomResizedCrop(scale=Interval((0.8, 1.0)), ratio=Interval((0.9, 1.1)))))


def cifar10(graph: Graph, folder: Path) -> ImageData:
    try:
        return load_data(graph, Setting.of(Cifar10()), folder, offline=True)
    except CnnspecError:
        print("CIFAR-10 is not there: random images of its size")
        pixels = torch.randint(0, 256, (45000, 3, 32, 32), dtype=torch.uint8)
        parts = [Pixels(pixels[:n], torch.randint(0, 10, (n,))) for n in (45000, 5000, 10000)]
        return ImageData("random", 10, *parts, lambda: ((0.5,) * 3, (0.25,) * 3))


class OneByOne(Dataset):
    """Images as the tutorial reads them: an array, a PIL image, transforms."""

    def __init__(self, data: ImageData) -> None:
        assert isinstance(data.train, Pixels)
        self.arrays = data.train.pixels.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.train.labels.tolist()
        self.change = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomHorizontalFlip(),
                transforms.RandomResizedCrop((32, 32), scale=(0.8, 1.0), ratio=(0.9, 1.1)),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.change(self.arrays[index]), self.labels[index]


def loader(data: ImageData, workers: int) -> DataLoader:
    return DataLoader(OneByOne(data), BATCH, shuffle=True, drop_last=True, num_workers=workers)


def feed(data: ImageData, epoch: int = 0) -> EpochBatches:
    fixed = Preprocessing((32, 32), data.mean, data.std)
    return EpochBatches(data.train, Preprocess(fixed, AUGMENT), BATCH, seed=1, epoch=epoch)


def speed(batches: Iterator[Any], count: int, warm: int = 5) -> float:
    """Images per second of so many batches, behind some that start the workers, or make memory writable again."""
    for _ in islice(batches, warm):
        pass
    start = time.perf_counter()
    done = sum(len(labels) for _, labels in islice(batches, count))
    return done / (time.perf_counter() - start)


def measure_input(args: argparse.Namespace) -> None:
    keep_memory()  # as a run does; the tutorial's way has it, too
    data = cifar10(load("resnet20"), args.data_dir)
    rates: dict[int, list[float]] = {workers: [] for workers in (0, 1, 2, 4)}
    ours: list[float] = []
    for _ in range(args.repeats):
        for workers, seen in rates.items():
            seen.append(speed(iter(loader(data, workers)), args.batches))
        # The workers were forks: the first write to each page behind them is a fault, and not one of our making.
        ours.append(speed(iter(feed(data)), 7 * args.batches, warm=40))
    for workers, seen in rates.items():
        print(f"PIL and DataLoader, {workers} workers: {statistics.median(seen):>10,.0f} images/s")
    best = max(statistics.median(seen) for seen in rates.values())
    print(f"cnnspec:                       {statistics.median(ours):>10,.0f} images/s")
    print(f"ratio to the best of them: {statistics.median(ours) / best:.1f}")


class Tutorial(pl.LightningModule):
    """A module as tutorials write it; `optimizer` is that of the network's recipe, one of the tutorial's two."""

    def __init__(self, network: nn.Module, optimizer: str) -> None:
        super().__init__()
        self.network, self.optimizer = network, optimizer

    def configure_optimizers(self) -> Any:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(self.parameters(), 1e-3, weight_decay=1e-4)
        return torch.optim.SGD(self.parameters(), 0.1, 0.9, weight_decay=1e-4)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.log("train_acc", (logits.argmax(dim=-1) == labels).float().mean(), on_step=False, on_epoch=True)
        self.log("train_loss", loss)
        return loss


class Watched(pl.Callback):
    """Seconds between the ends of steps, behind some that warm up."""

    def __init__(self, warm: int) -> None:
        self.warm, self.ends = warm, list[float]()

    def on_train_batch_end(self, *args: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [b - a for a, b in pairwise(self.ends[self.warm :])]


def tutorial_steps(graph: Graph, data: ImageData, steps: int, workers: int) -> list[float]:
    """Seconds of each step of the tutorial's way, the input with them."""
    watch = Watched(WARM - 1)
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = pl.Trainer(
            max_steps=steps, accelerator="cpu", devices=1, default_root_dir=folder, callbacks=[watch],
            enable_model_summary=False,
        )  # fmt: skip
        with redirect_stdout(io.StringIO()):
            trainer.fit(Tutorial(build(graph), graph.recipe.optimizer.name), loader(data, workers))
    return watch.seconds


def our_steps(
    graph: Graph, data: ImageData, steps: int, between: Callable[[runs.Task], None] = lambda _: None
) -> list[float]:
    """Seconds of each step of a run as `cnnspec build --train` makes it, logs, checkpoints and all.

    What `between` does behind each step is not in them.
    """
    seconds: list[float] = []
    start = time.perf_counter()
    step_end = runs.Task.on_train_batch_end

    def watched(self: Any, *args: Any) -> None:
        nonlocal start
        step_end(self, *args)
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= steps:
            raise Stopped
        between(self)
        start = time.perf_counter()

    recipe = graph.recipe.model_copy(update={"augment": AUGMENT, "batch": BATCH})
    load_before = runs.load_data
    runs.load_data, runs.Task.on_train_batch_end = (lambda *a, **o: data), watched
    try:
        with tempfile.TemporaryDirectory() as folder:
            options = TrainOptions(
                out=Path(folder), plots=False, accelerator="cpu", devices=1, console=Console(file=io.StringIO()),
                batch=BATCH, save_every=60.0,
            )  # fmt: skip
            train(replace(graph, recipe=recipe), options)
    finally:
        runs.load_data, runs.Task.on_train_batch_end = load_before, step_end
    return seconds[WARM:]


def bare_steps(graph: Graph, data: ImageData, layout: torch.memory_format) -> Iterator[float]:
    """Seconds of each step of a plain loop over the same batches in the same memory format."""
    network = build(graph).to(memory_format=layout).train()
    optimizer, _ = optimizer_for(network, graph.recipe, 1)
    batches = iter(feed(data))
    while True:
        start = time.perf_counter()
        images, labels = next(batches)
        optimizer.zero_grad()
        outputs = network(images.contiguous(memory_format=layout))
        F.cross_entropy(getattr(outputs, "logits", outputs), labels).backward()
        optimizer.step()
        yield time.perf_counter() - start


def in_pairs(graph: Graph, data: ImageData, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of the steps of the bare loop and of the trainer, one of each in turn: what slows one slows both."""
    loops: list[Iterator[float]] = []
    bare: list[float] = []

    def between(task: runs.Task) -> None:
        if not loops:  # in the memory format that the trainer has chosen
            loops.append(bare_steps(graph, data, task.context.memory_format))
        bare.append(next(loops[0]))

    ours = our_steps(graph, data, steps + WARM, between)
    return bare[WARM - 1 :], ours  # the bare step in front of each


def measure_step(args: argparse.Namespace) -> None:
    keep_memory()
    for name in args.names or ["resnet20"]:
        graph = load(name)
        bare, ours = in_pairs(graph, cifar10(graph, args.data_dir), args.batches * args.repeats)
        overhead = statistics.median(b / a for a, b in zip(bare, ours, strict=True)) - 1
        bare_ms, our_ms = (statistics.median(seconds) * 1e3 for seconds in (bare, ours))
        print(f"{name:<18} bare {bare_ms:8.1f} ms  trainer {our_ms:8.1f} ms  overhead {overhead:+.2%}", flush=True)


def epoch_of(name: str, folder: Path, steps: int, workers: int | None) -> float:
    """Seconds of an epoch in one of the two ways, from the mean of some steps; with workers it is the tutorial's."""
    graph = load(name)
    data = cifar10(graph, folder)
    seconds = our_steps(graph, data, steps) if workers is None else tutorial_steps(graph, data, steps, workers)
    return statistics.mean(seconds) * (len(data.train) // BATCH)


def measure_epoch(args: argparse.Namespace) -> None:
    """In turns, each in a process of its own: the allocator cannot be put back behind ours."""
    for name in args.names or ["resnet20"]:
        seen: dict[int | None, list[float]] = {args.workers: [], None: []}
        for _ in range(args.repeats):
            for workers, taken in seen.items():
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    taken.append(process.submit(epoch_of, name, args.data_dir, args.batches, workers).result())
        tutorial, ours = map(statistics.median, seen.values())
        each = " ".join(f"{a / b:.2f}" for a, b in zip(*seen.values(), strict=True))
        print(
            f"{name:<18} tutorial {tutorial:8.1f} s  cnnspec {ours:8.1f} s  ratio {tutorial / ours:.2f}  turns {each}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("input", "step", "epoch"))
    parser.add_argument("names", nargs="*", help="networks")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--batches", type=int, default=40, help="steps of each measurement")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--workers", type=int, default=2, help="of the tutorial's DataLoader in `epoch`")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}")
    {"input": measure_input, "step": measure_step, "epoch": measure_epoch}[args.what](args)


if __name__ == "__main__":
    main()
