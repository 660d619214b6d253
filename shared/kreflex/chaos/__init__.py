"""Faults on purpose: only where people have opted in, only while the error budget allows it, and always taken back."""
