"""Benchmarks of speed and of what must never happen; docs/benchmarks.md tells how each is judged."""
