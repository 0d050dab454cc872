"""What can be asked for by name: one table a module, and no torch."""
