"""What a checked graph can become; each module takes a `Graph` and knows nothing of the others."""
