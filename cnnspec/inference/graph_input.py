"""The preprocessing as a part of an exported graph.

Images are resized as matrix products whose weights depend on their size, so that every runtime computes the same, for
images of any size. The weights are those of Pillow and of torchvision with antialiasing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnspec.training.data.preprocessing import Preprocessing


class GraphInput(nn.Module):
    """Turn bytes `[N, C, h, w]` into the input of a network, `[N, C, H, W]`, and apply the network.

    As in Pillow, the width comes first, and the values are rounded to 8 bits after each axis.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self.preprocessing = network, preprocessing
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, values[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.network((self.resized(images) / 255 - self.mean) / self.std)

    def resized(self, images: Tensor) -> Tensor:
        """Return the images after resizing and cropping, from 0 to 255, `[N, C, H, W]`."""
        sizes = [torch.scalar_tensor(images.shape[axis], dtype=torch.int64) for axis in (2, 3)]
        inner = self._inner_size(*sizes)
        rows, columns = (
            self._weights(size, images.shape[2 + axis], inner[axis], self.preprocessing.size[axis])
            for axis, size in enumerate(sizes)
        )
        pixels = (images.to(torch.float32) @ columns.T).clamp(0, 255).round()  # [N, C, h, W]
        return (rows @ pixels).clamp(0, 255).round()  # [N, C, H, W]

    def _inner_size(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Return the height and width of the whole image after resizing; see `Preprocessing.fit_images`."""
        fixed = self.preprocessing
        high, wide = (torch.scalar_tensor(size, dtype=torch.int64) for size in fixed.size)
        if fixed.fit == "squash":
            return high, wide
        if fixed.fit == "crop" and fixed.resize is not None:
            short = torch.minimum(height, width)
            return fixed.resize * height // short, fixed.resize * width // short
        by_height = high * width >= wide * height  # the ratio of the heights is at least that of the widths
        if fixed.fit == "letterbox":
            by_height = ~by_height
        return (
            torch.where(by_height, high, _rounded(height * wide, width)).clamp(min=1),
            torch.where(by_height, _rounded(width * high, height), wide).clamp(min=1),
        )

    def _weights(self, size: Tensor, length: int, inner: Tensor, outer: int) -> Tensor:
        """Return the weight of each pixel of an axis in each pixel of the output, `[outer, length]`.

        Args:
            size: The length of the axis as a tensor.
            length: The same, which is a symbol in an exported graph.
            inner: The length after resizing.
            outer: The length after cropping or padding.
        """
        inside = torch.arange(outer) + self._offset(inner, outer)
        scale = size.to(torch.float32) / inner
        pixels = torch.arange(length)
        if self.preprocessing.mode == "nearest":
            weights = (pixels == torch.floor(inside * scale).to(torch.int64)[:, None]).to(torch.float32)
        else:
            centers = (inside + 0.5) * scale
            distance = ((pixels + 0.5) - centers[:, None]).abs() / scale.clamp(min=1)
            weights = _triangle(distance) if self.preprocessing.mode == "bilinear" else _cubic(distance)
            weights = weights / weights.sum(1, keepdim=True)
        return torch.where(((inside >= 0) & (inside < inner))[:, None], weights, 0)

    def _offset(self, inner: Tensor, outer: int) -> Tensor:
        """Return the position of the first pixel of the output in the resized image; less than 0 for padding."""
        if self.preprocessing.fit == "letterbox":
            return -((outer - inner) // 2)
        spare = inner - outer  # torchvision rounds half to even where it crops, and down where it pads
        return torch.where(spare >= 0, _rounded(spare, torch.scalar_tensor(2, dtype=torch.int64)), -((-spare) // 2))


def _rounded(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return a quotient of integers of at least 0, rounded half to even."""
    half_up = (2 * numerator + denominator) // (2 * denominator)
    tie = 2 * numerator + denominator == 2 * denominator * half_up
    return half_up - (tie & (half_up % 2 == 1)).to(torch.int64)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Return the weights of bicubic interpolation with `a = -0.5`, as with antialiasing."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0))
