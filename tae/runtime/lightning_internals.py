"""Every part of Lightning that we read although it is not public; tests/tae/runtime/ says when one is renamed."""

from collections.abc import Sequence
from subprocess import Popen

import lightning as L


def is_logged_step(trainer: L.Trainer) -> bool:
    """Whether Lightning logs what the running training step gives (`log_every_n_steps`, and the last one before a stop).

    Asked of Lightning itself: its counter moves on only after `on_train_batch_end`, so all hooks of a step hear the same,
    and as what will be logged.
    """
    return trainer._logger_connector.should_update_logs


def forget_logged(trainer: L.Trainer, prefix: str) -> None:
    """Let figures of earlier steps, by how their names begin, not be logged again with this step's; Lightning keeps them."""
    for result in (trainer._results or {}).values():
        if result.meta.name.startswith(prefix):
            result.reset()


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether Lightning validates after this batch; asked of Lightning, which has several schedules."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def sibling_processes(trainer: L.Trainer) -> Sequence[Popen[bytes]]:
    """The processes of this node that Lightning started; none where a launcher starts all."""
    return getattr(trainer.strategy.launcher, "procs", [])
