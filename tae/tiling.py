"""The former home of `tae.model.tiling`, kept for one version."""

from tae.model.tiling import Tiling, decode_stream, encode_stream

__all__ = ["Tiling", "decode_stream", "encode_stream"]
