"""Benchmarks of the registry's cost. Run them from the repository's root; not distributed."""
