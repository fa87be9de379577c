"""Facts about a checked Graph: liveness, cost, receptive fields, summaries, differences, feature taps."""
