"""The servers behind the flows: started, made ready, and stopped."""
