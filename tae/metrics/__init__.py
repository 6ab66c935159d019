"""Metrics of reconstructions, without Lightning."""
