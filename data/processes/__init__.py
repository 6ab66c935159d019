"""Worker processes: isolation, shared memory, a watchdog."""
