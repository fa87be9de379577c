"""Take generated photos from a folder to every runtime with the command line, and compare all predictions.

    python tests/harness/photo_workflow.py [--count 64]

Photos of five classes are written; `init`, `train`, `test` and `predict` run on them; the run is exported to each
format, with and without `--fold`, `--half` and `--with-preprocessing`; and each file classifies the test photos in its
own runtime, the ONNX files also in OpenVINO. Without options, top-1 must agree and probabilities may differ by 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from cnnspec.cli.app import app
from cnnspec.inference import load_run
from cnnspec.training.data.augment import Preprocess

CLASSES = {"oak tree": (0, 4), "dög": (5, 0), 'müller\'s "x"': (3, 3), "🐦 bird": (7, 2), "plain": (1, 9)}
"""The class names, and the waves that tell their photos apart."""
TOLERANCES = {"": 1e-4, "--fold": 1e-4, "--half": 1e-2, "--with-preprocessing": 2e-2}
"""The largest accepted difference of a probability for each option."""
Run = Callable[[Tensor], Tensor]


def write_photos(folder: Path, count: int) -> None:
    """Write JPEG files of different sizes, a third of them for testing."""
    random = np.random.default_rng(0)
    for name, waves in CLASSES.items():
        for number in range(count):
            height, width = random.integers(48, 97, 2)
            y, x = np.mgrid[0:height, 0:width] / 64
            phase = random.uniform(0, 2 * np.pi)
            wave = np.sin(2 * np.pi * (waves[0] * y + waves[1] * x) + phase)[..., None]
            pixels = 128 + wave * random.uniform(20, 60, 3) + random.normal(0, 12, (height, width, 3))
            path = folder / ("test" if number % 3 == 0 else "train") / name / f"photo {number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def cnnspec(*arguments: str) -> str:
    """Run a command, and return its output."""
    begin = time.perf_counter()
    done = CliRunner().invoke(app, arguments, standalone_mode=False)
    if done.exception is not None or done.return_value:
        raise SystemExit(f"cnnspec {' '.join(arguments)} failed:\n{done.stderr}") from done.exception
    print(f"cnnspec {' '.join(arguments)}: {time.perf_counter() - begin:.1f} s", flush=True)
    return done.stdout


def runtimes(file: Path, half: bool) -> dict[str, Run]:
    """Return the function of an exported file in each of its runtimes."""
    if file.suffix == ".py":
        found = runpy.run_path(str(file))
        network: nn.Module = [
            kind for kind in found.values() if isinstance(kind, type) and issubclass(kind, nn.Module)
        ][-1]()
        network.load_state_dict(torch.load(file.with_suffix(".pt"), weights_only=True))
        network.eval()
        return {"torch": (lambda x: network.half()(x.half()).float()) if half else network}
    if file.suffix == ".pt2":
        return {"torch.export": torch.export.load(file).module()}
    import onnxruntime
    import openvino

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    model = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return {
        "ONNX Runtime": lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]),
        "OpenVINO": lambda x: torch.from_numpy(model(x.numpy())[0]),
    }


def compare(run: Run, inputs: list[Tensor], expected: Tensor) -> tuple[float, float]:
    """Return the fraction of photos with the same most probable class, and the largest difference of a probability."""
    with torch.no_grad():
        found = torch.cat([run(x) for x in inputs]).double().softmax(1)
    same = (found.argmax(1) == expected.argmax(1)).double().mean()
    return float(same), float((found - expected).abs().max())


def train() -> Path:
    """Train and test a network on the photos, and return the folder of the run."""
    cnnspec("init", "photos")
    cnnspec("train", "photos.cnn", "--epochs", "3", "--no-plots", "--out", "runs")
    (run,) = (path.parent for path in Path("runs").glob("**/result.json"))
    print(cnnspec("test", "photos.cnn", "--weights", str(run / "checkpoints/best.safetensors")).splitlines()[-2])
    return run


def export(run: Path) -> int:
    """Export a run in every way, compare each file with `cnnspec predict`, and return the number of failures."""
    trained = load_run(run)
    predictions = [json.loads(line) for line in cnnspec("predict", str(run), "photos/test", "--json").splitlines()]
    order = [{each["class"]: each["probability"] for each in line["predictions"]} for line in predictions]
    expected = torch.tensor([[row[name] for name in trained.classes] for row in order], dtype=torch.float64)
    photos = [np.array(Image.open(line["file"]).convert("RGB")) for line in predictions]
    pixels = [torch.from_numpy(photo).permute(2, 0, 1)[None].contiguous() for photo in photos]
    prepared = [Preprocess(trained.preprocessing)(photo).contiguous() for photo in pixels]
    failed = 0
    for option, tolerance in TOLERANCES.items():
        for ending in ("pt2", "onnx") if option == "--with-preprocessing" else ("py", "pt2", "onnx"):
            file = Path(f"naïve photo{option}.{ending}")
            cnnspec("export", str(run), str(file), *filter(None, [option]))
            inputs = pixels if option == "--with-preprocessing" else prepared
            inputs = inputs[::5] if option == "--half" else inputs  # float16 takes long on a CPU
            for name, function in runtimes(file, option == "--half").items():
                same, difference = compare(function, inputs, expected[:: 5 if option == "--half" else 1])
                ok = difference <= tolerance and (same == 1 or tolerance > 1e-4)
                failed += not ok
                figures = f"{same:.1%} of top-1 agree, probabilities differ by {difference:.2g}"
                print(f"{name} {option}: {figures} on {len(inputs)} photos{'' if ok else ': failed'}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=64, help="photos per class")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_photos(Path("photos"), given.count)
        print(f"{given.count * len(CLASSES)} photos of {len(CLASSES)} classes")
        return int(export(train()) > 0)


if __name__ == "__main__":
    sys.exit(main())
