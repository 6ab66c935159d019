"""Training on several devices."""

from lightning.pytorch.strategies import DDPStrategy


def tuned_ddp(accumulate_grad_batches: int) -> DDPStrategy:
    """DDP tuned for this model: every parameter takes part in every step, and there are no buffers to keep equal.

    Args:
        accumulate_grad_batches: as the Trainer has it. With more than one batch to a step DDP leaves out the exchange of
            gradients in all backward passes but the last (`no_sync`), which a static graph does not allow.
    """
    return DDPStrategy(static_graph=accumulate_grad_batches == 1, gradient_as_bucket_view=True, broadcast_buffers=False)
