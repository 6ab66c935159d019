"""What every other layer stands on: errors, files, the command line, the hub, signals."""
