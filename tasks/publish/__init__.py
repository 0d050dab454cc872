"""Adapters for others: the model registry, model cards, and the hub."""
