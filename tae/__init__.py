"""Temporal Autoencoder: video to a small latent and back."""
