"""Build a shipped network and use it like any torch module: a few steps of training on random images."""

import torch
from torch.nn.functional import cross_entropy

import cnnspec

torch.manual_seed(0)
module = cnnspec.build("resnet20")
optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))

for step in range(5):
    loss = cross_entropy(module(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1}: loss {loss.item():.3f}")

module.eval()
print("logits", tuple(module(images).shape))
print("first convolution", tuple(module.stem[0].weight.shape), "is", next(iter(module.state_dict())))
