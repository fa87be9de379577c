"""One training run: options, plan, folder, progress, loggers, plots."""
