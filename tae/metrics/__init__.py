"""Metrics of reconstructions, without Lightning."""

from tae.metrics.metric import Metric, NotMeasured

__all__ = ["Metric", "NotMeasured"]
