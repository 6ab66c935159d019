"""Which clips, windows and crops a stream takes, as pure functions of a seed."""
