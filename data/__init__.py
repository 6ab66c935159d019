"""Videos to shards, shards to batches of frames."""
