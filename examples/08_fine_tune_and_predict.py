"""From a folder of images to predictions: fine-tune a pretrained network, then classify new images.

The example draws its images, and makes the pretrained weights itself: it trains on four shapes, then fine-tunes for
three other ones. The early layers are frozen, and the last block has a smaller learning rate than the new head.
"""

from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

import cnnspec
from cnnspec.recipe import Folder, Setting
from cnnspec.training import TrainOptions, train

SPEC = """
network shapes
input 3x32x32
classes 4
stem   conv 3x3 16 stride=2 | bn | relu
layer1: { conv 3x3 32 stride=2; bn; relu }
layer2: { conv 3x3 32; bn; relu }
head   global_avgpool | flatten | linear classes
train { optimizer adamw lr=0.01; epochs 8; batch 8; normalize half; RECIPE }
"""
FINE_TUNING = "freeze until=layer2; rates group layer2 lr=0.001; loss cross_entropy class_weights=balanced"


def draw_shapes(folder: Path, corners: dict[str, int], count: int) -> Path:
    """Draw regular polygons with random positions, sizes and colors."""
    random = Random(len(corners))
    for part in ("train", "test"):
        for shape, sides in corners.items():
            (folder / part / shape).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = Image.new("RGB", (40, 40), "white")
                circle = random.randint(14, 26), random.randint(14, 26), random.randint(8, 13)
                color = tuple(random.randrange(180) for _ in range(3))
                ImageDraw.Draw(image).regular_polygon(circle, sides, fill=color)
                image.save(folder / part / shape / f"{number}.png")
    return folder


def options(folder: Path, **more: object) -> TrainOptions:
    return TrainOptions(data=Setting.of(Folder(path=str(folder), val=0)), out=Path("shapes_runs"), plots=False, **more)


many = draw_shapes(Path("many_shapes"), {"circle": 40, "hexagon": 6, "square": 4, "triangle": 3}, 30)
pretrained = train(cnnspec.loads(SPEC.replace("; RECIPE", "")), options(many))

few = draw_shapes(Path("few_shapes"), {"octagon": 8, "diamond": 4, "triangle": 3}, 12)
graph = cnnspec.loads(SPEC.replace("RECIPE", FINE_TUNING), classes=3)
weights = str(pretrained.folder / "checkpoints" / "best.safetensors")
result = train(graph, options(few, weights=weights, reinit=("head",)))

for prediction in cnnspec.load_run(result.folder).predict(few / "test")[::6]:
    print(f"{prediction.file}: {prediction.name} ({prediction.probability:.1%})")
