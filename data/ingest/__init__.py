"""From source files to shards: checks, splits, shots, a journal of what is done."""
