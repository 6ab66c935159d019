"""Every frame of a file by a plain sequential decode. Imports nothing of ours."""

from io import BytesIO

import av
import numpy as np


def decode_in_order(video: bytes) -> list[np.ndarray]:
    """uint8 (h, w, 3) images in the order of display, turned as the container asks."""
    with av.open(BytesIO(video)) as container:
        return [np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90) for f in container.decode(video=0)]
