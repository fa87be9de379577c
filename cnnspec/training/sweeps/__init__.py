"""Hyperparameter search: the space, the study, the sweep."""
