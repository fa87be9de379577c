"""The four networks of UvA deep learning tutorial 5, written by hand with plain torch modules.

They are what the built networks are measured against (`module_speed.py`): the same structure, in the way
in which people write such networks. Modules are created in the order in which the specs name them, so
weights can be handed over by order.
"""

import torch
from torch import Tensor, nn


def conv_bn_relu(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)
    )


class InceptionBlock(nn.Module):
    """1x1 | 1x1, 3x3 | 1x1, 5x5 | pool, 1x1."""

    def __init__(self, c_in: int, c1: int, r3: int, c3: int, r5: int, c5: int, cp: int) -> None:
        super().__init__()
        self.conv_1x1 = conv_bn_relu(c_in, c1, 1)
        self.conv_3x3 = nn.Sequential(conv_bn_relu(c_in, r3, 1), conv_bn_relu(r3, c3, 3))
        self.conv_5x5 = nn.Sequential(conv_bn_relu(c_in, r5, 1), conv_bn_relu(r5, c5, 5))
        self.max_pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv_bn_relu(c_in, cp, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv_1x1(x), self.conv_3x3(x), self.conv_5x5(x), self.max_pool(x)], dim=1)


class GoogleNet(nn.Sequential):
    """Inception blocks at 32x32, 16x16 and 8x8."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            conv_bn_relu(3, 64, 3),
            InceptionBlock(64, 16, 32, 32, 16, 8, 8),
            InceptionBlock(64, 24, 32, 48, 16, 12, 12),
            nn.MaxPool2d(3, stride=2, padding=1),
            InceptionBlock(96, 24, 32, 48, 16, 12, 12),
            InceptionBlock(96, 16, 32, 48, 16, 16, 16),
            InceptionBlock(96, 16, 32, 48, 16, 16, 16),
            InceptionBlock(96, 32, 32, 48, 16, 24, 24),
            nn.MaxPool2d(3, stride=2, padding=1),
            InceptionBlock(128, 32, 48, 64, 16, 16, 16),
            InceptionBlock(128, 32, 48, 64, 16, 16, 16),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(128, classes),
        )


class ResNetBlock(nn.Module):
    """Two convolutions and a shortcut; the activation follows the sum."""

    def __init__(self, c_in: int, c_out: int, subsample: bool) -> None:
        super().__init__()
        stride = 2 if subsample else 1
        self.net = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.downsample = nn.Conv2d(c_in, c_out, 1, stride=2) if subsample else None
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return self.act(z + x)


class PreActResNetBlock(nn.Module):
    """As `ResNetBlock` with normalisation and activation in front of each convolution."""

    def __init__(self, c_in: int, c_out: int, subsample: bool) -> None:
        super().__init__()
        stride = 2 if subsample else 1
        self.net = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
        )
        self.downsample = None
        if subsample:
            self.downsample = nn.Sequential(
                nn.BatchNorm2d(c_in), nn.ReLU(inplace=True), nn.Conv2d(c_in, c_out, 1, stride=2, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return z + x


class ResNet(nn.Module):
    """Three stages of three blocks with 16, 32 and 64 channels."""

    def __init__(self, block: type[nn.Module] = ResNetBlock, classes: int = 10) -> None:
        super().__init__()
        stem: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
        if block is ResNetBlock:
            stem += [nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        self.input_net = nn.Sequential(*stem)
        blocks: list[nn.Module] = []
        c_in = 16
        for stage, c in enumerate((16, 32, 64)):
            for number in range(3):
                blocks.append(block(c_in, c, subsample=stage > 0 and number == 0))
                c_in = c
        self.blocks = nn.Sequential(*blocks)
        self.output_net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.output_net(self.blocks(self.input_net(x)))


class DenseLayer(nn.Module):
    """Puts `growth` new channels in front of its input."""

    def __init__(self, c_in: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm2d(c_in),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_in, bottleneck * growth, 1, bias=False),
            nn.BatchNorm2d(bottleneck * growth),
            nn.ReLU(inplace=True),
            nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(x), x], dim=1)


class DenseNet(nn.Module):
    """Four dense blocks with a transition between any two."""

    def __init__(self, layers: tuple[int, ...] = (6, 6, 6, 6), growth: int = 16, classes: int = 10) -> None:
        super().__init__()
        c = 2 * growth
        self.input_net = nn.Conv2d(3, c, 3, padding=1)
        blocks: list[nn.Module] = []
        for number, count in enumerate(layers):
            for _ in range(count):
                blocks.append(DenseLayer(c, growth, bottleneck=2))
                c += growth
            if number < len(layers) - 1:
                blocks.append(
                    nn.Sequential(
                        nn.BatchNorm2d(c),
                        nn.ReLU(inplace=True),
                        nn.Conv2d(c, c // 2, 1, bias=False),
                        nn.AvgPool2d(2, stride=2),
                    )
                )
                c //= 2
        self.blocks = nn.Sequential(*blocks)
        self.output_net = nn.Sequential(
            nn.BatchNorm2d(c), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.output_net(self.blocks(self.input_net(x)))


def preact_resnet() -> ResNet:
    return ResNet(PreActResNetBlock)


TWINS = {
    "resnet20": ResNet,
    "preact_resnet20": preact_resnet,
    "googlenet_cifar": GoogleNet,
    "densenet_cifar": DenseNet,
}
"""The hand-written network for each shipped spec."""
