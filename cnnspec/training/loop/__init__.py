"""The training step: task, optimizers, checkpoints, evaluation, and machine settings."""
