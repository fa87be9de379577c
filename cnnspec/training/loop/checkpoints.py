"""The checkpoints of a run: written whole, sealed with a checksum, the last two kept.

A checkpoint is what `torch.save` writes, and behind it a seal: eight letters and the SHA-256 of all before them.
`torch.load` does not mind the seal, so the file stays readable by everyone. It is written beside its place, brought
to the disk, and renamed; at every moment there is a whole one.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from cnnspec.diagnostics import failure

MARK = b"CNNSPEC1"
"""What a seal begins with."""
CHUNK = 1 << 20
"""Bytes of one call of `write`."""

State = dict[str, Any]


class Damaged(Exception):
    """A checkpoint is not what was written."""


def seal(state: State) -> bytes:
    """A state as the bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getvalue()
    return body + MARK + hashlib.sha256(body).digest()


def unseal(content: bytes) -> State:
    """The state in the bytes of a checkpoint; only tensors and plain values are ever made.

    Raises:
        Damaged: The seal is missing or does not fit.
    """
    body, mark, digest = content[:-40], content[-40:-32], content[-32:]
    if mark != MARK:
        raise Damaged("its end is missing")
    if hashlib.sha256(body).digest() != digest:
        raise Damaged("its checksum does not fit")
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a sealed file of another make fails in many ways
        raise Damaged(" ".join(str(error).split())[:200]) from None
    if not isinstance(state, dict) or "progress" not in state:
        raise Damaged("it is no checkpoint of a run")
    return state


def _bring_to_disk(folder: Path) -> None:
    """Makes the names in a folder survive a loss of power, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not on Windows
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is complete or as it was before."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb", buffering=0) as file:
            view = memoryview(content)
            while view:
                view = view[file.write(view[:CHUNK]) :]
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass
        raise
    _bring_to_disk(path.parent)


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name; no checkpoint is ever written to, so both stay whole."""
    temporary = target.with_name(target.name + ".part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without links
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


class Checkpoints:
    """The checkpoints in a run's folder.

    Attributes:
        last: The newest.
        former: The one before.
        best: That of the best epoch.
        weights: The best weights alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last, self.former, self.best = (folder / name for name in ("last.ckpt", "former.ckpt", "best.ckpt"))
        self.weights = folder / "best.safetensors"

    def save(self, state: State, *, best: bool = False) -> None:
        """Write a state as the newest checkpoint; the newest so far becomes the former.

        Args:
            state: Tensors and plain values.
            best: Whether it is the best, too. The best is written first: a run that is killed in between does
                the epoch again, and finds the same.

        Raises:
            OSError: It cannot be written; those that are there stay.
        """
        new = self.folder / "new.ckpt"
        write_whole(new, seal(state))
        if best:
            write_whole(self.weights, weight_bytes(weights_in(state["state_dict"])))
            _link(new, self.best)
        if self.last.exists():
            _link(self.last, self.former)
        os.replace(new, self.last)
        _bring_to_disk(self.folder)

    def exist(self) -> bool:
        """Whether there is anything to go on from."""
        return self.last.exists() or self.former.exists()

    def load(self) -> tuple[State, list[str]]:
        """The newest state that is whole, and what is to be said about those that are not.

        Raises:
            CnnspecError: E0506 if none is whole.
        """
        said: list[str] = []
        for path in (self.last, self.former):
            try:
                return unseal(path.read_bytes()), said
            except FileNotFoundError:
                continue
            except Damaged as damage:
                said.append(f"the checkpoint `{path.name}` is damaged: {damage}")
            except OSError as error:
                said.append(f"the checkpoint `{path.name}` cannot be read: {error.strerror}")
        raise failure(
            "E0506",
            "the run cannot be resumed: none of its checkpoints is whole",
            file=str(self.folder),
            notes=said,
            help="train anew without `--resume`",
        )


def weights_in(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by the names that they have in the network."""
    return {key.removeprefix("network."): value for key, value in state_dict.items()}


def weight_bytes(weights: Mapping[str, Tensor]) -> bytes:
    """Tensors as the bytes of a safetensors file."""
    return save({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}, {"format": "pt"})
