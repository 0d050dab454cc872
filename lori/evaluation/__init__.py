"""Answers to the benchmarks, their scores, and how sure those are."""
