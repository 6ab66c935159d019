"""When a run started, told alike by all of its processes: `${started:FORMAT}` in configs names output folders by it.

Hydra's own `${now:}` asks each process for its clock. That does where one process starts the others, as Lightning does
with the devices of a node; under `torchrun` and `srun` all start at once, and each would write to a folder of its own.
"""

import calendar
import functools
import os
import time

from omegaconf import OmegaConf

from tae.runtime.errors import UserError


@functools.cache
def start_time() -> int:
    """The run's start in seconds, as the clock on the wall of the first process showed it (so that time zones agree too).

    Raises:
        UserError: nothing that the processes share tells it.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
        return _told_by_first_process()
    if "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        if "SLURM_JOB_START_TIME" not in os.environ:
            raise UserError(
                "This SLURM does not tell its tasks when the job started: name their folder, output_dir=PATH."
            )
        return _wall_clock(float(os.environ["SLURM_JOB_START_TIME"]))
    return _wall_clock(time.time())


def _told_by_first_process() -> int:
    """Over the store that torchrun's agents keep for their processes; one entry for each restart."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise UserError("This torchrun keeps no store for its processes: name their folder, output_dir=PATH.")
    from torch.distributed import TCPStore

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    entry = f"tae/started/{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    if os.environ["RANK"] == "0":
        store.set(entry, str(_wall_clock(time.time())))
    return int(store.get(entry))


def _wall_clock(seconds: float) -> int:
    """Seconds since 1970 to those that the local clock would show if it were UTC."""
    return calendar.timegm(time.localtime(seconds))


# Cached with each config, as Hydra's `now`: the runs of a sweep and a launcher's jobs then keep the sweep's own time.
OmegaConf.register_new_resolver(
    "started", lambda form: time.strftime(form, time.gmtime(start_time())), use_cache=True, replace=True
)
