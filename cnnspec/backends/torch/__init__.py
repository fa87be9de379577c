"""The torch backend: from Graph to `nn.Module`, with initialization and weights."""
