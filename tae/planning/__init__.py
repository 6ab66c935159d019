"""What a model costs, counted before it runs."""
