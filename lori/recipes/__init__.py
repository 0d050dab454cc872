"""The numbers: the config of every cell, from a profile."""
