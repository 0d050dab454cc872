"""The steps of the pipeline, a file each: fetch, one call of `lori`, save, log."""
