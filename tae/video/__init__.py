"""Video files as streams: reading front to back, and writing."""

from tae.video.reader import VideoReader
from tae.video.writer import VideoWriter, write_video

__all__ = ["VideoReader", "VideoWriter", "write_video"]
