"""A study: its parameters checked, its cells run, its results published."""
