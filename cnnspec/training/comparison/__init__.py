"""Comparing networks over several seeds: candidates, tables, report."""
