"""Return the features of some modules in place of logits, as detection and segmentation heads need them."""

import torch
from torch import nn

import cnnspec

SCALES = ("layer2", "layer3", "layer4")

backbone = cnnspec.build("resnet18", outputs=SCALES)  # weights="torchvision:DEFAULT" for the published weights


class Pyramid(nn.Module):
    """Sum all scales in 64 channels at the size of the first one, the idea of a feature pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone
        features = [backbone.graph.feature(path) for path in SCALES]
        self.lateral = nn.ModuleList(nn.Conv2d(feature.channels, 64, 1) for feature in features)
        self.zoom = nn.ModuleList(
            nn.Upsample(scale_factor=feature.reduction[0] // features[0].reduction[0]) for feature in features
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [N, 3, H, W] -> [N, 64, H / 8, W / 8]
        features = self.backbone(images)
        parts = [
            zoom(lateral(features[path])) for path, lateral, zoom in zip(SCALES, self.lateral, self.zoom, strict=True)
        ]
        return torch.stack(parts).sum(0)


for feature in backbone.graph.features:
    height, width = feature.reduction
    print(f"{feature.path}: {feature.channels} channels, one place for {height}x{width} pixels")
print("it takes images of", backbone.graph.sizes.words())
print("pyramid", tuple(Pyramid()(torch.randn(2, 3, 128, 160)).shape))
