"""Fine-tune a published ResNet-18 on your own folder of images.

    python 05_transfer_learning.py PICTURES

The folder contains `train/CLASS/*.png`, and `test/CLASS/*` for a test. Without a folder, the script draws three shapes.
The weights of torchvision are downloaded once. Only the head is initialized randomly.
"""

import sys
import tempfile
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

import cnnspec
from cnnspec.recipe import Folder, Setting
from cnnspec.training import TrainOptions, train


def draw_shapes(folder: Path, count: int = 6) -> None:
    """Draw circles, squares and triangles with random positions, sizes and colors."""
    random = Random(1)
    for part in ("train", "test"):
        for shape in ("circle", "square", "triangle"):
            (folder / part / shape).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (96, 96), "white")
                x, y, r = random.randint(30, 66), random.randint(30, 66), random.randint(15, 28)
                colour = tuple(random.randrange(200) for _ in range(3))
                corners = {"circle": 40, "square": 4, "triangle": 3}[shape]
                ImageDraw.Draw(image).regular_polygon((x, y, r), corners, fill=colour)
                image.save(folder / part / shape / f"{number}.png")


with tempfile.TemporaryDirectory() as scratch:
    pictures = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch)
    if len(sys.argv) == 1:
        draw_shapes(pictures)
    classes = sum(path.is_dir() for path in (pictures / "train").iterdir())

    # `classes` is a parameter of the network, the others are entries of its recipe.
    graph = cnnspec.load("resnet18", classes=classes, optimizer="sgd", lr=0.01, momentum=0.9, epochs=1, batch=8)
    options = TrainOptions(
        data=Setting.of(Folder(path=str(pictures), val=0)),
        weights="torchvision:DEFAULT",
        reinit=("fc",),
        out=Path("transfer_runs"),
    )
    result = train(graph, options)
    print(f"test accuracy {result.values['test_acc']:.2f}, weights in {result.folder / 'checkpoints'}")
