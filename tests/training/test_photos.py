"""Read a folder of 320 photos in mixed formats, sizes, modes and orientations.

The reference never reads the files that Pillow wrote without loss: it computes the pixels from the samples that they
were made of. JPEG files are decoded by torchvision.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.images import stored
from PIL import Image
from torchvision.io import decode_image
from torchvision.transforms import v2

from cnnspec import loads
from cnnspec.recipe import Folder, Setting
from cnnspec.training import TrainOptions, train
from cnnspec.training.data.augment import Preprocess
from cnnspec.training.data.datasets import load_data
from cnnspec.training.data.preprocessing import choose_preprocessing
from cnnspec.training.loop.checkpoints import network_weights

CLASSES = ("bay", "city", "dune", "farm", "lake")
FORMATS = {
    "RGB": ("png", "bmp", "tiff", "ppm", "webp", "jpg"),
    "L": ("png", "bmp", "tiff", "pgm", "gif", "jpg"),
    "I;16": ("png", "tiff", "pgm"),
    "RGBA": ("png", "tiff", "webp"),
    "LA": ("png",),
    "P": ("png", "gif", "tiff"),
    "1": ("png", "tiff", "pbm"),
}
"""The formats of each mode."""
WITH_EXIF = ("png", "webp", "tiff", "jpg")
NETWORK = """input 3x24x24
classes 5
stem conv 3x3 6 stride=2 | bn | relu
head global_avgpool | flatten | linear classes
train {
    resize    28
    augment   hflip | random_crop pad=2
    optimizer sgd lr=0.05
    batch     32
    epochs    1
}
"""


def photo(random: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """Draw a smooth image with some noise, as samples [h, w, channels] from 0 to 1."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(6 * (x * random.normal() + y * random.normal()) + random.normal()) for _ in range(channels)]
    samples = np.stack(waves, 2) * 0.4 + 0.5 + random.normal(0, 0.03, (height, width, channels))
    return samples.clip(0, 1)


def write_photo(random: np.random.Generator, place: Path, mode: str, extension: str) -> tuple[Path, np.ndarray | None]:
    """Write a photo. Return its path, and the pixels `[h, w, 3]` that a viewer shows, None for a JPEG."""
    height, width = random.integers(12, 90, 2)
    orientation = int(random.integers(1, 9)) if extension in WITH_EXIF else 1
    exif = Image.Exif()
    exif[0x0112] = orientation
    samples = photo(random, height, width, {"RGB": 3, "RGBA": 4, "LA": 2}.get(mode, 1))
    bits = np.round(samples * 255).astype(np.uint8)
    options: dict[str, Any] = {"exif": exif} if extension in WITH_EXIF else {}
    options |= {"lossless": True, "exact": True} if extension == "webp" else {}
    path = place.with_suffix(f".{extension}")
    if mode == "I;16":
        values = np.round(samples[..., 0] * 65535).astype(np.uint16)
        shown, image = np.round(values / 257)[..., None], Image.fromarray(stored(values, orientation))
    elif mode in ("RGBA", "LA"):
        alpha = bits[..., -1:].astype(float) / 255
        shown = bits[..., :-1] * alpha + 255 * (1 - alpha)
        image = Image.fromarray(stored(bits, orientation), mode)
    elif mode == "P":
        colors = random.integers(0, 256, (256, 3), dtype=np.uint8)
        shown, image = colors[bits[..., 0]], Image.fromarray(stored(bits[..., 0], orientation))
        image = image.convert("P")
        image.putpalette(colors.tobytes())
        image.frombytes(stored(bits[..., 0], orientation).tobytes())
    elif mode == "1":
        on = bits[..., 0] > 128
        shown, image = on[..., None] * 255.0, Image.fromarray(stored(on, orientation))
    else:
        shown = bits
        image = Image.fromarray(stored(bits.squeeze(), orientation))
    assert image.mode == mode
    image.save(path, **options)
    return path, None if extension == "jpg" else np.broadcast_to(shown, (*shown.shape[:2], 3))


def write_photos(root: Path) -> dict[str, np.ndarray]:
    """Write 320 photos and return their pixels by the path below `root`."""
    random = np.random.default_rng(16)
    kinds = [(mode, extension) for mode, extensions in FORMATS.items() for extension in extensions]
    found: dict[str, np.ndarray] = {}
    for number in range(320):
        split, name = ("test" if number % 4 == 3 else "train"), CLASSES[number // 4 % 5]
        (root / split / name).mkdir(parents=True, exist_ok=True)
        path, shown = write_photo(random, root / split / name / f"{number:03}", *kinds[number % len(kinds)])
        if shown is None:
            shown = decode_image(str(path), mode="RGB", apply_exif_orientation=True).permute(1, 2, 0).numpy()
        found[path.relative_to(root).as_posix()] = shown
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    root = tmp_path_factory.mktemp("photos")
    return root, write_photos(root)


def test_photos_are_read_as_by_the_reference(photos: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, expected = photos
    data = load_data(loads(NETWORK), Setting.of(Folder(path=str(root), val=0)), Path())
    differences: Counter[int] = Counter()
    for split in ("train", "test"):
        part: Any = getattr(data, split)
        for path, pixels, label in zip(
            part.paths(), part.read(torch.arange(len(part))), part.labels.tolist(), strict=True
        ):
            reference = expected[path.relative_to(root).as_posix()]
            found = pixels[0].permute(1, 2, 0).numpy()
            assert found.shape == reference.shape, path
            # blending with white is rounded in another way, by at most one level
            greatest = np.abs(found - reference.astype(float)).max()
            assert greatest <= (1 if path.suffix in (".png", ".tiff", ".webp") else 0), path
            differences[int(np.ceil(greatest))] += 1
            assert data.names[label] == path.parent.name
    assert sum(differences.values()) == 320
    assert differences[0] >= 265  # 268 photos have no alpha


def test_inputs_of_the_network_are_those_of_torchvision(photos: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, _ = photos
    graph = loads(NETWORK)
    data = load_data(graph, Setting.of(Folder(path=str(root), val=0)), Path())
    preprocessing, _ = choose_preprocessing(graph.recipe, graph.input_shape, data.compute_statistics)
    preprocess = Preprocess(preprocessing)
    theirs = v2.Compose(
        [
            v2.Resize(28, antialias=True),
            v2.CenterCrop(24),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.mean, data.std),
        ]
    )
    assert data.test is not None
    for pixels in data.test.read(torch.arange(len(data.test))):
        torch.testing.assert_close(preprocess(pixels), theirs(pixels), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("one_thread")
def test_the_order_of_files_on_disk_does_not_change_the_training(
    photos: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    root, found = photos
    weights: list[dict[str, torch.Tensor]] = []
    for seed in (1, 2):
        copy = tmp_path / str(seed)
        for name in np.random.default_rng(seed).permutation(sorted(found)):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, copy / name)
        options = TrainOptions(
            data=Setting.of(Folder(path=str(copy))),
            out=tmp_path / f"runs{seed}",
            plots=False,
            memory_format="contiguous",
        )
        state = torch.load(train(loads(NETWORK), options).folder / "checkpoints" / "last.ckpt", weights_only=True)
        weights.append(network_weights(state["state_dict"]))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
