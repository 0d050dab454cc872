"""The report: the paper's tables and figures, from handles alone."""
