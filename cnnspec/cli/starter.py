"""The command `init`, which writes a starter spec for a folder of images."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from cnnspec.diagnostics import echo, failure, printable, reason_of

_SAMPLE = 100
"""The maximum number of images whose size is read."""
_SHOWN = 8
_SMALL = """\
# Replace or repeat the blocks as you like; `cnnspec list` shows all blocks and operators.
stem conv 3x3 32 | bn | relu
stage resnet_block x2 32
stage resnet_block x2 64 subsample
stage resnet_block x2 128 subsample
head global_avgpool | flatten | dropout 0.2 | linear classes
"""


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder of images by class, or a table of labels.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The spec to write (default: the name of the folder).")
    ] = None,
) -> None:
    """Write a starter spec for a folder of images: classes, image size, a network, and a recipe."""
    from cnnspec.training.data.folders import list_images

    listing = list_images(folder)
    train = [entry for split in ("train", "test") for entry in listing.splits.get(split, ())]
    if len(listing.classes) < 2:
        help = "arrange the images in one folder per class"
        raise failure(
            "E0503", f"`{folder}` has a single class, but a classifier needs two", file=str(folder), help=help
        )
    name = re.sub(r"\W+", "_", (folder.resolve().stem or "images"), flags=re.ASCII).strip("_").lower()[:40] or "images"
    network_name = f"net_{name}" if name[0].isdigit() else f"{name}_net"  # never a keyword
    path = out or Path(f"{name}.cnn")
    side, gray = _size_of([entry.path for entry in train])
    counts = Counter(entry.label for entry in train)
    shown = ", ".join(printable(name) for name in listing.classes[:_SHOWN])
    splits = ", ".join(f"{len(entries):,} {split}" for split, entries in listing.splits.items())
    rest = f" and {len(listing.classes) - _SHOWN} more" if len(listing.classes) > _SHOWN else ""
    large = side >= 128
    network = [f"extends resnet18 classes={len(listing.classes)}", f"network {network_name}"]
    if not large:
        size = 32 if side < 48 else 64
        network = [
            f"network {network_name}",
            f"input {1 if gray else 3}x{size}x{size}  # images are resized to this size",
        ]
        network += [f"classes {len(listing.classes)}", "", _SMALL.rstrip()]
    data = _relative(folder, path)
    batch = max(2, min(32 if large else 64, sum(counts.values()) // 8))
    balanced = max(counts.values()) > 3 * min(counts.values())
    crop = "random_resized_crop scale=0.5..1.0" if large else "random_crop 4"
    train_lines = [
        *(
            [f'data folder "{data}" val=0.2  # the fraction for validation, unless there is a folder `val`']
            if data
            else []
        ),
        f"augment {crop} | hflip  # remove `hflip` if left and right matter",
        *(["normalize imagenet", "resize crop=0.875"] if large else []),
        f"optimizer adamw lr={3e-4 if large else 1e-3:g} weight_decay=0.05",
        "schedule cosine warmup=2",
        "epochs 30",
        f"batch {batch}",
        *(["loss cross_entropy class_weights=balanced  # some classes have few images"] if balanced else []),
        "label_smoothing 0.1",
    ]
    lines = [
        f"# Starter spec for {len(listing.classes)} classes: {shown}{rest}",
        f"# Images: {splits}, {'grayscale' if gray else 'color'}, with a shorter side of about {side} pixels",
        *network,
        "",
        "train {",
        *(f"    {line}" for line in train_lines),
        "}",
    ]
    _write("\n".join(lines) + "\n", path)
    echo(f"wrote {path}: {len(listing.classes)} classes; {splits}")
    echo(*(f"note: {note}" for note in listing.notes))
    echo(f"train it with `cnnspec train {path}" + ("" if data else f" --data folder:{folder}") + "`")


def _size_of(paths: list[Path]) -> tuple[int, bool]:
    """Return the median of the shorter sides of some images, and whether all are grayscale."""
    try:
        from PIL import Image

        from cnnspec.training.data.images import FORMATS
    except ModuleNotFoundError as error:
        help = "install it with `pip install 'cnnspec[train]'`"
        message = f"reading images requires `{error.name}`, which is not installed"
        raise failure("E0507", message, help=help) from None

    sides: list[int] = []
    modes: set[str] = set()
    for path in paths[:: max(1, len(paths) // _SAMPLE)]:
        try:
            with Image.open(path, formats=FORMATS) as image:
                sides.append(min(image.size))
                modes.add(image.mode)
        except Exception:  # noqa: BLE001 - decoders raise many types; training reports the file
            continue
    if not sides:
        raise failure("E0503", "none of the images can be read", help="check the files of the folder")
    return sorted(sides)[len(sides) // 2], modes <= {"1", "L", "LA", "I", "I;16", "I;16B"}


def _relative(folder: Path, spec: Path) -> str | None:
    """Return the path of the data as a spec can state it: below the folder of the spec."""
    relative = os.path.relpath(folder.resolve(), spec.parent.resolve())
    return relative if not relative.startswith("..") and re.fullmatch(r'[^"\n{}#]+', relative) else None


def _write(text: str, path: Path) -> None:
    from cnnspec.api import format as format_text

    text = format_text(text, path.name)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise failure("E0212", f"`{path}` exists already", file=str(path), help="choose another with `--out`") from None
    except OSError as error:
        raise failure("E0212", f"cannot write `{path}`: {reason_of(error)}", file=str(path)) from None
