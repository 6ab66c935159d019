"""The former home of `tae.model.tiling` and `tae.model.streaming`, kept for one version."""

from tae.model.streaming import decode_stream, encode_stream
from tae.model.tiling import Tiling

__all__ = ["Tiling", "decode_stream", "encode_stream"]
