"""Compare the parameters and operations of the shipped networks, without torch."""

import sys

import cnnspec

NAMES = ("resnet20", "preact_resnet20", "googlenet_cifar", "densenet_cifar", "resnet56", "resnet110")

print(f"{'network':<16} {'parameters':>10} {'MMACs':>8} {'depth':>6}  convolutions by stage")
for name in NAMES:
    graph = cnnspec.load(name)
    convolutions: dict[str, int] = {}
    for node in graph.nodes:
        if node.op.name == "conv":
            part = node.path.split(".")[0]
            convolutions[part] = convolutions.get(part, 0) + 1
    stages = ", ".join(f"{part} {count}" for part, count in convolutions.items())
    print(f"{name:<16} {graph.parameter_count:>10,} {graph.macs / 1e6:>8.2f} {graph.depth:>6}  {stages}")

print("torch was imported" if "torch" in sys.modules else "torch was not imported")
