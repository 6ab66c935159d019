"""Hydra's side of a sweep: which run has ended, and how."""

import json
import logging
import re
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from tae.runtime.errors import first_line
from tae.runtime.files import write_text

log = logging.getLogger(__name__)


class SweepComparison(Callback):
    """Hydra callback that compares the runs of a multirun.

    The comparison is written again after every run, not only at the end: once a run has failed, Hydra raises after the
    last one and never says that the sweep has ended; and a sweep that is interrupted leaves the comparison so far.
    Hydra makes this object before it calls the task, so what it needs is imported when there is something to compare.
    """

    def __init__(self) -> None:
        self.printed = 0  # runs in the table that was printed last

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:  # also the further processes that Lightning starts for a run
            return
        from tae.evaluation.sweep_runs import RECORD

        write_text(Path(config.hydra.runtime.output_dir) / RECORD, json.dumps(_record(config, job_return), indent=2))
        self.compare(_sweep_folder(config), at_least=2)  # a table of one run compares nothing

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self.compare(_sweep_folder(config), at_least=1)  # the runs of a parallel launcher end in any order, anywhere

    def compare(self, folder: Path, at_least: int) -> None:
        """Write the comparison, and print its table unless it has fewer runs, or no more than the last one printed."""
        from tae.evaluation.sweep import print_comparison, write_comparison

        runs = write_comparison(folder)
        if len(runs) >= at_least and len(runs) > self.printed:
            print_comparison(runs, folder)
            self.printed = len(runs)


def _sweep_folder(config: DictConfig) -> Path:
    """The sweep's folder, also where Hydra has changed the working directory to a run's own."""
    return Path(config.hydra.runtime.cwd) / config.hydra.sweep.dir


def _record(config: DictConfig, job_return: JobReturn) -> dict[str, Any]:
    error = None
    if job_return.status == JobStatus.FAILED:
        try:
            _ = job_return.return_value  # raises what the run raised, after a line on standard error
        except Exception as failure:
            error = first_line(failure)
            log.error("Run %s failed: %s", config.hydra.job.num, error)
    plainly = (
        re.sub(r"\\(.)", r"\1", override) for override in job_return.overrides or []
    )  # Hydra escapes `:` and others
    overrides = dict(override.lstrip("+~").partition("=")[::2] for override in plainly)
    return {"job": config.hydra.job.num, "overrides": overrides, "error": error}
