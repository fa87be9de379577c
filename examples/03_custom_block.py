"""Write your own block, look at the diagnostic for a mistake in it, and build the network."""

import torch

import cnnspec

SPEC = """
network convnext_like
input 3x32x32
classes 10

param width = 32
param depth = 2

# source: Liu et al. 2022, arXiv 2201.03545, figure 4
block convnext_block(expand = 4) {
    let c = in.c
    add {
        in
        {
            conv 7x7 depthwise bias
            ln
            conv 1x1 expand*c bias
            gelu
            conv 1x1 c bias
            scale 1e-6
        }
    }
}

stem  conv 4x4 width stride=4 pad=0 | ln
stage convnext_block repeat=depth
stage ln | conv 2x2 2*width stride=2 pad=0 | convnext_block repeat=depth
head  global_avgpool | flatten | ln | linear classes

expect output = [classes]
"""

# The second convolution of the block has the wrong number of output channels.
for diagnostic in cnnspec.check(SPEC.replace("conv 1x1 c bias", "conv 1x1 2*c bias"), "convnext.cnn"):
    print(diagnostic)
    print()

for width in (32, 64):
    graph = cnnspec.loads(SPEC, width=width)
    print(f"width {width}: {graph.parameter_count:,} parameters, {graph.macs / 1e6:.2f} million multiply-adds")

module = cnnspec.build(cnnspec.loads(SPEC))
print("logits", tuple(module(torch.randn(2, 3, 32, 32)).shape))
