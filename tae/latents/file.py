"""Layout of a latents file, and reading a window of it without reading the rest."""

import json
import struct
from typing import IO

import torch
from torch import Tensor

LATENTS_INDEX = "index.json"
TENSORS = ("mean", "std")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FORMAT_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}  # of safetensors


def read_window(file: IO[bytes], name: str, start: int, length: int) -> Tensor:
    """`length` latent frames from `start` on of one tensor of an open .safetensors file: (length, c, h', w').

    `file` stands at the beginning of the .safetensors data and is left anywhere.
    """
    begin = file.tell()
    (header_length,) = struct.unpack("<Q", file.read(8))
    entry = json.loads(file.read(header_length))[name]
    dtype = next(dtype for dtype, format_name in FORMAT_NAMES.items() if format_name == entry["dtype"])
    first, end = entry["data_offsets"]
    frame = (end - first) // entry["shape"][0]
    file.seek(begin + 8 + header_length + first + start * frame)
    values = bytearray(file.read(length * frame))
    return torch.frombuffer(values, dtype=dtype).view(length, *entry["shape"][1:])
