"""Autoencoders of other authors, through the package diffusers: rules, the model, loading. Nothing here imports it early."""
