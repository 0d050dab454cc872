"""Where cells are computed: cached Prefect tasks, executors, locks and GPUs."""
