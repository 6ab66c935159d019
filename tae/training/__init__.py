"""Training: the LightningModule, checkpoints, resume, callbacks, loggers."""
