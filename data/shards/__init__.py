"""WebDataset shards and their index: format, reading, writing."""
