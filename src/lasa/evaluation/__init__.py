"""Benchmarks, judges, outcomes and statistics."""
