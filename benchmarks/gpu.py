"""Measure training on a GPU: the whole of it in ten minutes, on whatever machine has one.

    python benchmarks/gpu.py --minutes 9 --data-dir data --json gpu.json

It prints one table and writes JSON. A part that would start after these minutes is skipped:

    tutorial  four networks against the UvA tutorial's way of training them, in the same process
    airbench  test accuracy and time of `airbench_cifar` on CIFAR-10, over seeds, compiled and not
    resnet50  training throughput at 224x224 in bf16, against a plain PyTorch loop and against the peak of the GPU
    input     the input pipeline alone
    syncs     calls per step in which the host waits for the GPU
    memory    peak memory against the estimate of `cnnspec summary`
    shared    two processes that share the GPU
    devices   steps on two GPUs against steps on one, by their multiply-adds: the threshold of `--devices auto`

Without CIFAR-10 in `--data-dir`, random images of its size are used, and `airbench` is skipped. `--cpu --quick` runs
every part for a few steps on a CPU, to test this script.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training_speed import OneByOne, Tutorial

import cnnspec.training.runs.train as runs
from cnnspec import Graph, build, load
from cnnspec.analysis.cost import training_memory
from cnnspec.diagnostics import CnnspecError
from cnnspec.recipe import Cifar10, HFlip, RandomCrop, RandomResizedCrop, Setting
from cnnspec.schema import Interval
from cnnspec.training import TrainOptions, train
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.batches import EpochBatches
from cnnspec.training.data.datasets import ImageData, Pixels, load_data
from cnnspec.training.data.preprocessing import choose_preprocessing
from cnnspec.training.loop.machine import device_name
from cnnspec.training.loop.optimizers import optimizer_for
from cnnspec.training.loop.signals import Stopped
from cnnspec.training.runs.loggers import quiet

NETWORKS = ("resnet20", "preact_resnet20", "googlenet_cifar", "densenet_cifar")
AUGMENT = (Setting.of(HFlip()), Setting.of(RandomResizedCrop(scale=Interval((0.8, 1.0)), ratio=Interval((0.9, 1.1)))))
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12}
"""Dense bf16 operations per second with float32 sums. Source: NVIDIA's data sheets."""


@dataclass
class Bench:
    """The settings of the measurements, and their results."""

    device: torch.device
    data_dir: Path
    quick: bool
    end: float
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    accelerator: str = "auto"

    def add(self, part: str, what: str, **values: Any) -> None:
        self.rows.append({"part": part, "what": what, **values})
        shown = "  ".join(f"{name} {_format(value)}" for name, value in values.items())
        print(f"{part:<9} {what:<34} {shown}", flush=True)

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def count(self, steps: int) -> int:
        return 2 if self.quick else steps

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _format(value: Any) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def random_images(count: int, size: int, classes: int = 10) -> ImageData:
    some = torch.randint(0, 256, (min(count, 512), 3, size, size), dtype=torch.uint8)
    pixels = some.repeat(-(-count // len(some)), 1, 1, 1)[:count]
    part = Pixels(pixels, torch.randint(0, classes, (count,)))
    few = part.subset(torch.arange(min(count, 512)))
    return ImageData("random", classes, part, few, few, lambda: ((0.5,) * 3, (0.25,) * 3))


def cifar10(bench: Bench, graph: Graph) -> ImageData:
    try:
        return load_data(graph, Setting.of(Cifar10()), bench.data_dir, offline=True)
    except CnnspecError:
        return random_images(64 if bench.quick else 50_000, 32)


# --- the library's way and the tutorial's -----------------------------------------------------------


@contextmanager
def watched_steps(data: ImageData, after: Callable[[int], None]) -> Iterator[None]:
    """Let runs train on a dataset, and call a function with the number of each completed step."""
    load_before, step_end = runs.load_data, runs.Task.on_train_batch_end

    def watched(self: Any, *args: Any) -> None:
        step_end(self, *args)
        after(self.progress.step)

    runs.load_data, runs.Task.on_train_batch_end = (lambda *a, **o: data), watched
    try:
        yield
    finally:
        runs.load_data, runs.Task.on_train_batch_end = load_before, step_end


def train_quietly(bench: Bench, graph: Graph, recipe: dict[str, Any], **given: Any) -> None:
    """Train a network with some entries of its recipe replaced, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(
            out=Path(folder), plots=False, accelerator=bench.accelerator, devices=1, save_every=60.0,
            console=Console(file=io.StringIO()), **given,
        )  # fmt: skip
        train(replace(graph, recipe=graph.recipe.model_copy(update=recipe)), options)


def our_seconds(bench: Bench, graph: Graph, data: ImageData, recipe: dict[str, Any], steps: int, **given: Any) -> float:
    """Return the seconds of a step of `train`, with input, logging and checkpoints, after `steps` others."""
    marks: list[float] = []

    def after(step: int) -> None:
        if step in (steps, 2 * steps):
            bench.synchronize()
            marks.append(time.perf_counter())
        if len(marks) == 2:
            raise Stopped

    per_epoch = max(1, len(data.train) // recipe["batch"])
    with watched_steps(data, after):
        train_quietly(bench, graph, recipe, epochs=2 * steps // per_epoch + 2, **given)
    return (marks[1] - marks[0]) / steps


class Marks(pl.Callback):
    def __init__(self, bench: Bench, steps: int) -> None:
        self.bench, self.steps, self.marks = bench, steps, list[float]()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step in (self.steps, 2 * self.steps):
            self.bench.synchronize()
            self.marks.append(time.perf_counter())


def tutorial_seconds(bench: Bench, graph: Graph, data: ImageData, steps: int, batch: int) -> float:
    """Return the seconds of a step of the tutorial's way, after `steps` others."""
    marks = Marks(bench, steps)
    workers = 0 if bench.quick else min(4, os.cpu_count() or 1)
    images = DataLoader(
        OneByOne(data), batch, shuffle=True, drop_last=True, num_workers=workers, pin_memory=True,
        persistent_workers=workers > 0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, quiet(), redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_steps=2 * steps, accelerator=bench.accelerator, devices=1, default_root_dir=folder, callbacks=[marks],
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Tutorial(build(graph), graph.recipe.optimizer.name), images)
    return (marks.marks[1] - marks.marks[0]) / steps


def measure_tutorial(bench: Bench) -> None:
    batch = 4 if bench.quick else 128
    for name in NETWORKS[:1] if bench.quick else NETWORKS:
        if bench.left < 20:
            bench.add("tutorial", f"{name}: skipped: no time left")
            continue
        graph = load(name)
        data = cifar10(bench, graph)
        recipe = {"augment": AUGMENT, "batch": batch}
        steps = bench.count(100)
        theirs = tutorial_seconds(bench, graph, data, steps, batch)
        plain = plain_seconds(bench, graph, batch, steps, 32, None)
        bench.add("tutorial", f"{name}, plain loop, fp32", steps_per_s=1 / plain)
        ways: dict[str, dict[str, Any]] = {"fp32": {"precision": "fp32"}, "auto": {}}
        if not bench.quick:
            ways["auto, cuda_graphs"] = {"compile": "cuda_graphs"}
        for way, more in ways.items():
            given = {key: value for key, value in more.items() if key == "precision"}
            entries = recipe | {key: value for key, value in more.items() if key == "compile"}
            ours = our_seconds(bench, graph, data, entries, steps, **given)
            bench.add(
                "tutorial", f"{name}, {way}", steps_per_s=1 / ours, images_per_s=batch / ours,
                epoch_s=ours * (len(data.train) // batch), tutorial_epoch_s=theirs * (len(data.train) // batch),
                ratio=theirs / ours,
            )  # fmt: skip


def measure_airbench(bench: Bench) -> None:
    graph = load("airbench_cifar")
    try:
        load_data(graph, Setting.of(Cifar10()), bench.data_dir, offline=True)
    except CnnspecError:
        bench.add("airbench", "skipped: CIFAR-10 is not in --data-dir")
        return
    for way, compiled in (("not compiled", None), ("cuda_graphs", "cuda_graphs"), ("compiled", "default")):
        seen: list[tuple[float, float, float]] = []
        start = time.monotonic()
        for seed in range(1, 3 if bench.quick else 9):
            recipe = graph.recipe.model_copy(update={"compile": compiled, "seed": seed})
            with tempfile.TemporaryDirectory() as folder:
                options = TrainOptions(
                    out=Path(folder), data_dir=bench.data_dir, offline=True, plots=False, devices=1,
                    accelerator=bench.accelerator, console=Console(file=io.StringIO()),
                )  # fmt: skip
                begun = time.monotonic()
                values = train(replace(graph, recipe=recipe), options).values
                seen.append((values["test_acc"], values["seconds"], time.monotonic() - begun))
            if time.monotonic() - start > 30 or bench.left < 30:
                break
        accuracies, seconds, whole = zip(*seen, strict=True)
        bench.add(
            "airbench", way, runs=len(seen), test_acc=statistics.mean(accuracies), best=max(accuracies),
            reached_94=sum(value >= 0.94 for value in accuracies), train_s=statistics.median(seconds),
            first_run_s=whole[0], run_s=statistics.median(whole),
        )  # fmt: skip


def plain_seconds(
    bench: Bench, graph: Graph, batch: int, steps: int, size: int, kind: torch.dtype | None = torch.bfloat16
) -> float:
    """Return the seconds of a step of a plain loop on one batch in the memory of the device."""
    network = build(graph).to(bench.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer, _ = optimizer_for(network, graph.recipe, 1)
    images = torch.rand(batch, 3, size, size, device=bench.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, graph.output_shape[0], (batch,), device=bench.device)
    start = 0.0
    with torch.autocast(bench.device.type, kind) if kind is not None else nullcontext():
        for number in range(2 * steps):
            if number == steps:
                bench.synchronize()
                start = time.perf_counter()
            optimizer.zero_grad()
            outputs = network(images)
            F.cross_entropy(getattr(outputs, "logits", outputs), labels).backward()
            optimizer.step()
    bench.synchronize()
    return (time.perf_counter() - start) / steps


def measure_resnet50(bench: Bench) -> None:
    size, batch = (64, 4) if bench.quick else (224, 256)
    graph = load("resnet50")
    steps = bench.count(30)
    data = random_images(40 if bench.quick else 2 * (steps + 1) * batch, size, graph.output_shape[0])
    if bench.quick:
        graph = load("resnet20")
        data, size = random_images(64, 32), 32
    augment = (Setting.of(HFlip()),)
    theirs = plain_seconds(bench, graph, batch, steps, size)
    flops = 3 * 2 * graph.macs * batch
    peak = next((value for name, value in PEAKS.items() if name in device_name(bench.device)), None)
    bench.add(
        "resnet50", "plain loop, bf16", images_per_s=batch / theirs, of_peak=flops / theirs / peak if peak else "-"
    )
    for way, compiled in (("cnnspec, bf16", None), ("cnnspec, bf16, compiled", "default")):
        if bench.quick and compiled:
            continue
        recipe = {"augment": augment, "batch": batch, "compile": compiled}
        ours = our_seconds(bench, graph, data, recipe, steps, precision="bf16")
        bench.add(
            "resnet50", way, images_per_s=batch / ours, ratio=theirs / ours,
            of_peak=flops / ours / peak if peak else "-",
        )  # fmt: skip


def measure_input(bench: Bench) -> None:
    graph = load("resnet20")
    data = cifar10(bench, graph)
    fixed, _ = choose_preprocessing(graph.recipe, graph.input_shape, data.compute_statistics)
    crop = (Setting.of(HFlip()), Setting.of(RandomCrop()))
    for way, augment in (("hflip, random_resized_crop", AUGMENT), ("hflip, random_crop", crop)):
        batches = EpochBatches(data.train.to(bench.device), Preprocess(fixed, augment), 128, seed=1)
        for _ in islice(batches, bench.count(40)):
            pass
        bench.synchronize()
        start, count = time.perf_counter(), 0
        for epoch in range(1 if bench.quick else 5):
            for _, labels in EpochBatches(batches.images, batches.preprocess, 128, seed=1, epoch=epoch):
                count += len(labels)
        bench.synchronize()
        bench.add("input", way, images_per_s=count / (time.perf_counter() - start))


SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Events of the profiler in which the host waits for the GPU."""


def measure_syncs(bench: Bench) -> None:
    """Count, by the profiler, the calls in 48 steps between two log steps in which the host waits for the GPU."""
    graph = load("resnet20")
    data = cifar10(bench, graph)
    first, last = (1, 2) if bench.quick else (51, 99)
    profiler = torch.profiler.profile(acc_events=True)

    def after(step: int) -> None:
        if step == first:
            bench.synchronize()
            profiler.start()
        if step == last:
            profiler.stop()
            raise Stopped

    entries = {"augment": AUGMENT, "batch": 4 if bench.quick else 128, "ema": 0.99, "clip": 1.0, "mixup": 0.2}
    with watched_steps(data, after):
        train_quietly(bench, graph, entries)
    counts = {event.key: event.count for event in profiler.key_averages() if event.key in SYNCS}
    kernels = sum(
        event.count for event in profiler.key_averages() if event.key in ("cudaLaunchKernel", "cuLaunchKernelEx")
    )
    bench.add(
        "syncs", f"in {last - first} steps between two log steps", **counts, kernels_per_step=kernels // (last - first)
    )


def measure_memory(bench: Bench) -> None:
    if bench.device.type != "cuda":
        bench.add("memory", "skipped: not a GPU")
        return
    for name, batch in (("resnet20", 128), ("resnet50", 64)):
        graph = load(name)
        graph = replace(graph, recipe=graph.recipe.model_copy(update={"batch": batch}))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        size = graph.input_shape[1]
        network = build(graph).to(bench.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer, _ = optimizer_for(network, graph.recipe, 1)
        for _ in range(3):
            images = torch.rand(batch, *graph.input_shape, device=bench.device)
            optimizer.zero_grad()
            F.cross_entropy(network(images), torch.zeros(batch, dtype=torch.long, device=bench.device)).backward()
            optimizer.step()
        peak = torch.cuda.max_memory_allocated() - before
        estimate = training_memory(graph).at(batch)
        bench.add(
            "memory",
            f"{name}, {size}x{size}, batch {batch}, fp32",
            peak_mib=peak / 2**20,
            estimate_mib=estimate / 2**20,
        )


def measure_shared(bench: Bench) -> None:
    """Train for an epoch: two runs at a time on a GPU, a run of two processes on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "cnnspec", "build", "resnet20", "--train", "--data", "fashion_mini", "--epochs", "1",
            "--devices", "2" if bench.device.type == "cpu" else "1", "--out", folder, "--no-plots", "--accelerator",
            "cpu" if bench.device.type == "cpu" else "cuda",
        ]  # fmt: skip
        started = time.monotonic()
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for _ in range(1 if bench.device.type == "cpu" else 2)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        codes = [process.returncode for process in processes]
    bench.add("shared", "two processes", exit_codes=codes, seconds=time.monotonic() - started)
    if any(codes):
        print("\n".join(output[-2000:] for output in outputs))


def epoch_seconds(bench: Bench, name: str, batch: int, devices: int) -> float:
    """Return the seconds of the second epoch of a run on some devices, which `cnnspec build` starts."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "cnnspec", "build", name, "--train", "--data", "fashion_mini", "--set", "classes=10",
            "--epochs", "2", "--batch", str(batch), "--devices", str(devices), "--accelerator", bench.device.type,
            "--out", folder, "--no-plots",
        ]  # fmt: skip
        process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if process.returncode:
            raise RuntimeError(process.stderr[-300:])
        first, second = json.loads(next(Path(folder).rglob("result.json")).read_text())["epoch_seconds"]
        return second - first


def measure_devices(bench: Bench) -> None:
    """Compare networks on both sides of `MACS_PER_STEP` in `cnnspec/training/runs/devices.py`."""
    if bench.device.type != "cuda" or torch.cuda.device_count() < 2:
        bench.add("devices", "skipped: needs two GPUs")
        return
    for name, batch in (("resnet20", 128), ("resnet20", 1024), ("resnet18", 32), ("resnet50", 25), ("resnet50", 100)):
        if bench.left < 60:
            bench.add("devices", f"{name}, batch {batch}: skipped: no time left")
            continue
        one, two = (epoch_seconds(bench, name, batch, devices) for devices in (1, 2))
        giga_macs = load(name).macs * batch / 1e9
        bench.add("devices", f"{name}, batch {batch}", gmacs_per_step=giga_macs, one_s=one, two_s=two, ratio=one / two)


PARTS: dict[str, Callable[[Bench], None]] = {
    "syncs": measure_syncs,
    "tutorial": measure_tutorial,
    "airbench": measure_airbench,
    "resnet50": measure_resnet50,
    "input": measure_input,
    "memory": measure_memory,
    "shared": measure_shared,
    "devices": measure_devices,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"parts to measure, by default all: {', '.join(PARTS)}")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("CNNSPEC_DATA", "data")))
    parser.add_argument("--minutes", type=float, default=9.0, help="no part starts after this time")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--cpu", action="store_true", help="measure the CPU")
    parser.add_argument("--quick", action="store_true", help="a few steps of each part")
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        raise SystemExit("no GPU: use --cpu --quick to test this script")
    device = torch.device("cpu" if args.cpu else "cuda")
    bench = Bench(device, args.data_dir, args.quick, time.monotonic() + 60 * args.minutes)
    bench.accelerator = "cpu" if args.cpu else "auto"
    print(f"torch {torch.__version__}, {device_name(device)}, {os.cpu_count()} cores")
    if unknown := [part for part in args.parts if part not in PARTS]:
        raise SystemExit(f"no such part: {', '.join(unknown)}")
    for name in args.parts or PARTS:
        if bench.left < 10:
            bench.add(name, "skipped: no time left")
            continue
        try:
            PARTS[name](bench)
        except Exception as error:  # the other parts are measured
            bench.add(name, f"failed: {type(error).__name__}: {str(error)[:300]}")
            if args.quick:
                raise
        if args.json:
            args.json.write_text(
                json.dumps({"device": device_name(device), "torch": torch.__version__, "rows": bench.rows}, indent=1)
            )


if __name__ == "__main__":
    main()
