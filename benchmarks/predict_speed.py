"""Images per second of `load_run(...).predict` on a folder of PNG images, compared with a plain loop of torch.

Writes test images of CIFAR-10 to a folder (10,000, or `--images`), and predicts them in turns with a network that is
not trained and with a hand-written loop in one process: a `DataLoader` of a `Dataset` that opens each file with Pillow,
`ToTensor`, `Normalize`, and the same module. The ratio is above 1 if `predict` is the faster one.

    CNNSPEC_DATA=data python benchmarks/predict_speed.py --repeats 5
"""

import argparse
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms
from turns import in_turns

import cnnspec
from cnnspec.inference import TrainedNetwork


class Folder(Dataset):
    """The images of a folder, as tutorials write it."""

    def __init__(self, folder: Path, network: TrainedNetwork) -> None:
        self.paths = sorted(folder.glob("*.png"))
        fixed = network.preprocessing
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(fixed.mean, fixed.std)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def plain(folder: Path, network: TrainedNetwork, module: nn.Module, batch: int, workers: int) -> list[str]:
    with torch.inference_mode():
        loader = DataLoader(Folder(folder, network), batch, num_workers=workers)
        found = torch.cat([module(images).softmax(1).argmax(1) for images in loader])
    return [network.classes[index] for index in found.tolist()]


def ours(folder: Path, network: TrainedNetwork) -> list[str]:
    return [prediction.name for prediction in network.predict(folder)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", default="resnet20", help="a network for 32x32 images")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--batch", type=int, default=250, help="images per batch of the plain loop")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the plain loop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "images")
        folder.mkdir()
        images = datasets.CIFAR10(os.environ.get("CNNSPEC_DATA", "data"), train=False).data
        for index, pixels in enumerate(images[: options.images]):
            Image.fromarray(pixels).save(folder / f"{index:05}.png")
        module = cnnspec.build(options.spec).eval()
        save_file(module.state_dict(), Path(scratch, "weights.safetensors"))
        network = cnnspec.load_run(Path(scratch, "weights.safetensors"), spec=options.spec, normalize="imagenet")
        if ours(folder, network) != plain(folder, network, module, options.batch, options.workers):
            print("note: some predictions differ, by the rounding of nearly equal probabilities")
        ways = [partial(plain, folder, network, module, options.batch, options.workers), partial(ours, folder, network)]
        seconds = in_turns(ways, options.repeats)
        ratio = statistics.median(theirs / own for theirs, own in zip(*seconds, strict=True))
        rates = [len(list(folder.iterdir())) / statistics.median(times) for times in seconds]
        print(f"{options.spec}: plain {rates[0]:,.0f} images/s, predict {rates[1]:,.0f} images/s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
