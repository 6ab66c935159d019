"""The former home of `tae.model.pretrained`, kept for one version."""

from tae.model.pretrained import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]
