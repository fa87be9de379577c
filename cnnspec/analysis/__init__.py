"""Analyses of a Graph: liveness, cost, receptive fields, summaries, differences and feature taps."""
