"""The flows: `python -m flows` lists them, prefect.yaml deploys them."""
