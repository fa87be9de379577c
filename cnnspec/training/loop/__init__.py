"""The training step: task, optimizers, checkpoints, evaluation, and what the machine needs."""
