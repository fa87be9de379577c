"""Harnesses that tests of several packages share."""
