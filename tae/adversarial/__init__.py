"""Adversarial training: discriminators, their losses, and the opponent that trains them beside the autoencoder."""
