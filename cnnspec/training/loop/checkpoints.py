"""Write the checkpoints of a run atomically and with a checksum, and keep the last two.

A checkpoint is the output of `torch.save`, followed by a seal: eight bytes and the SHA-256 of everything before them.
`torch.load` ignores the seal, so other programs can read the file. A checkpoint is written to a temporary file, synced
to disk, and renamed, so a complete one exists at every moment. A thread writes it while the training continues.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils._pytree import tree_map_only

from cnnspec.backends.torch.weights import load_pickled
from cnnspec.diagnostics import CnnspecError, failure, one_line
from cnnspec.files import check_pickled_tensors, naming, open_regular, read_bytes, sync_folder, write_atomically

MAGIC = b"CNNSPEC1"
"""The first bytes of a seal."""
METADATA = "cnnspec"
"""The metadata key in a safetensors file."""

State = dict[str, Any]


class DamagedCheckpoint(Exception):
    """A checkpoint is corrupt."""


def seal(state: State) -> bytes:
    """Serialize a state to the bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getvalue()
    return body + MAGIC + hashlib.sha256(body).digest()


def unseal(content: bytes) -> State:
    """Read the state from the bytes of a checkpoint. Only tensors and plain values are unpickled.

    Raises:
        DamagedCheckpoint: The seal is missing or does not match.
    """
    body, magic, digest = content[:-40], content[-40:-32], content[-32:]
    if magic != MAGIC:
        raise DamagedCheckpoint("the end of the file is missing")
    if hashlib.sha256(body).digest() != digest:
        raise DamagedCheckpoint("the checksum does not match")
    try:
        state = load_pickled(io.BytesIO(body), len(body))
    except Exception as error:  # noqa: BLE001 - a file from another program fails in many ways
        raise DamagedCheckpoint(one_line(error)) from None
    if not isinstance(state, dict) or "progress" not in state:
        raise DamagedCheckpoint("it is not a checkpoint of a run")
    return state


def snapshot(state: State) -> tuple[State, torch.Event | None]:
    """Return a copy of a state in the memory of the host, and an event: the copies from a GPU are ready after it."""
    on_gpu = False

    def copy(tensor: Tensor) -> Tensor:
        nonlocal on_gpu
        if tensor.device.type != "cuda":
            return tensor.detach().to("cpu", copy=True)
        on_gpu = True
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor.detach(), non_blocking=True)

    copied = tree_map_only(Tensor, copy, state)
    if not on_gpu:
        return copied, None
    ready = torch.Event("cuda")
    ready.record()
    return copied, ready


# --- files ---------------------------------------------------------------------------------------


def _hard_link(source: Path, target: Path) -> None:
    """Create a hard link. Checkpoints are never modified, so both names stay valid."""
    temporary = target.with_name(target.name + ".part")
    with naming(target):
        try:
            temporary.unlink(missing_ok=True)
            try:
                os.link(source, temporary)
            except OSError:  # the file system has no links
                shutil.copyfile(source, temporary)
            os.replace(temporary, target)
        finally:
            with suppress(OSError):  # it also stays if both names are already links to one file
                temporary.unlink(missing_ok=True)


# --- checkpoints ---------------------------------------------------------------------------------


class Checkpoints:
    """The checkpoints in the folder of a run.

    Attributes:
        last: The latest checkpoint.
        previous: The one before it.
        best: The checkpoint of the best epoch.
        weights: The best weights alone.
        new: The next checkpoint, while it is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last, self.previous, self.best = (folder / name for name in ("last.ckpt", "previous.ckpt", "best.ckpt"))
        self.weights = folder / "best.safetensors"
        self.new = folder / "new.ckpt"
        self._pending: Future[None] | None = None

    def save_in_background(self, state: State, *, best: bool = False) -> None:
        """Copy a state, and write it in a thread as `save` does, while the training continues.

        Raises:
            OSError: The state before it could not be written.
        """
        self.wait()
        copied, ready = snapshot(state)

        def write() -> None:
            if ready is not None:
                ready.synchronize()
            self.save(copied, best=best)

        thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending = thread.submit(write)
        thread.shutdown(wait=False)  # it ends after this checkpoint

    def wait(self) -> None:
        """Wait until the last state is written.

        Raises:
            OSError: It cannot be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def save(self, state: State, *, best: bool = False) -> None:
        """Write a state as the latest checkpoint. The latest so far becomes the previous one.

        Args:
            state: Tensors and plain values.
            best: Whether it is also the best. The best is written first: if the process dies in between, the resumed
                run repeats the epoch with the same result.

        Raises:
            OSError: It cannot be written. The existing checkpoints stay.
        """
        write_atomically(self.new, seal(state))
        if best:
            weights = network_weights(state["state_dict"])
            about = {key: state.get("run", {}).get(key) for key in ("data", "about")}
            write_atomically(self.weights, weight_bytes(weights, about))
            _hard_link(self.new, self.best)
        if self.last.exists():
            _hard_link(self.last, self.previous)
        with naming(self.last):
            os.replace(self.new, self.last)
            sync_folder(self.folder)

    def exists(self) -> bool:
        """Return whether there is a checkpoint to resume from."""
        return self.last.exists() or self.previous.exists()

    def load(
        self, check: Callable[[State], None] = lambda state: None, limit: int = sys.maxsize
    ) -> tuple[State, list[str]]:
        """Return the latest intact state, and a message for each damaged checkpoint.

        Args:
            check: Called with a state. It raises `DamagedCheckpoint` if the state is not one of the run.
            limit: The maximum size of a checkpoint in bytes.

        Raises:
            CnnspecError: E0506 if no checkpoint is intact.
        """
        problems: list[str] = []
        for path in (self.last, self.previous):
            try:
                content = read_bytes(path, limit, "E0506", inside=self.folder)
                if content is None:
                    continue
                state = unseal(content)
                check(state)
                return state, problems
            except DamagedCheckpoint as damage:
                problems.append(f"the checkpoint `{path.name}` is damaged: {damage}")
            except CnnspecError as error:
                problems.append(f"the checkpoint `{path.name}` cannot be read: {error.diagnostics[0].notes[0]}")
            except MemoryError:
                problems.append(f"the checkpoint `{path.name}` does not fit into memory")
        raise failure(
            "E0506",
            "cannot resume the run: all of its checkpoints are damaged",
            file=str(self.folder),
            notes=problems,
            help="train again without `--resume`",
        )


def network_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their names in the network."""
    return {key.removeprefix("network."): value for key, value in state_dict.items()}


def weight_bytes(weights: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> bytes:
    """Serialize tensors to the bytes of a safetensors file.

    Args:
        weights: The tensors.
        about: Plain data on the run that trained them, stored in the metadata.
    """
    metadata = {"format": "pt"} | ({METADATA: json.dumps(about, sort_keys=True)} if about else {})
    content = save({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}, metadata)
    # safetensors writes the metadata in a random order.
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = metadata
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def read_about(path: Path) -> dict[str, Any]:
    """Return what a checkpoint or a safetensors file says about the run that wrote it. Other files say nothing."""
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get(METADATA, "{}"))
        else:
            with open_regular(path, sys.maxsize, "E0505") as file:
                assert file is not None
                check_pickled_tensors(file, os.fstat(file.fileno()).st_size)
            about = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("run")
    except Exception:  # noqa: BLE001 - a file from another program fails in many ways
        return {}
    return about if isinstance(about, dict) else {}
