"""The rows of the paper's domains, as prompts and as tokens."""
