"""What every entry point shares: Hydra around a task, user errors in one message, the output folder settled."""

import functools
import importlib.util
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, Self, TypeVar, overload

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from tae.runtime import start_time as launch  # noqa: F401  (registers ${started:})
from tae.runtime.commands import missing_package
from tae.runtime.console import prepare_output
from tae.runtime.errors import UserError, with_full_keys
from tae.runtime.files import NO_SPACE, check_writable
from tae.runtime.hydra_internals import shorten_start
from tae.runtime.override_errors import explain
from tae.runtime.ownership import RANKS, claim, free_folder, is_first_process
from tae.runtime.paths import to_path
from tae.runtime.quiet import quiet
from tae.runtime.schema import check_keys
from tae.runtime.settings import COMMAND_SETTINGS

FULL_ERROR = "HYDRA_FULL_ERROR"
CONFIG_FOLDER = str((Path(__file__).parents[1] / "conf").resolve())  # a link in a checkout, a folder once installed
Returned = TypeVar("Returned")
TaskFunction = Callable[[DictConfig], Returned]


@dataclass(frozen=True)
class Program:
    """How this command was started, for whoever has to start it once more: a file, or a module behind `python -m`."""

    file: str
    module: str | None

    @classmethod
    def running(cls) -> Self:
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        return cls(str(Path(sys.argv[0]).absolute()), None if spec is None else spec.name)

    @property
    def typed(self) -> str:
        """The command as it can be typed in this folder: `python train.py`, `python -m tae.encode`, `tae-encode`."""
        if self.module is not None:
            return f"python -m {self.module.removesuffix('.__main__')}"
        path = Path(self.file)
        return f"python {os.path.relpath(path)}" if path.suffix == ".py" else path.name.removesuffix(".exe")

    def pose(self, arguments: list[str]) -> None:
        """Look like it to Lightning, which starts the further processes of a node from `sys.argv` and `__main__`."""
        sys.argv = [self.file, *arguments]
        sys.modules["__main__"].__spec__ = None if self.module is None else importlib.util.find_spec(self.module)


# What `--help` calls the command: `${typed:}` in conf/hydra/help.
OmegaConf.register_new_resolver("typed", lambda: Program.running().typed, replace=True)


class Command(Generic[Returned]):
    """A task that is a command too: `command()` reads the command line, `command(cfg)` calls the task itself."""

    def __init__(
        self, task: TaskFunction[Returned], config_name: str, lists: Sequence[str], alone: str, unless: Sequence[str]
    ) -> None:
        functools.update_wrapper(self, task)
        self.task = task
        self.config_name = config_name
        self.lists = lists
        self.alone = alone
        self.unless = unless

    @overload
    def __call__(self) -> None: ...

    @overload
    def __call__(self, cfg: DictConfig) -> Returned: ...

    def __call__(self, cfg: DictConfig | None = None) -> Returned | None:
        if cfg is not None:
            return self.task(cfg)
        prepare_output()
        sys.argv = [at_home(nested(empty_group(argument))) for argument in list_commas(sys.argv, self.lists)]
        if self.alone and not chooses(sys.argv[1:], self.unless):
            sys.argv.insert(first_setting(sys.argv), self.alone)
        guarded = guard(self.task, self.config_name, Program.running())
        shorten_start()
        application = hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name=self.config_name)(guarded)
        try:
            with whole_errors():
                return application()
        except HydraException as error:
            fail(explain(error, CONFIG_FOLDER, self.config_name, sys.argv[1:]))


def hydra_main(
    config_name: str, lists: Sequence[str] = (), alone: str = "", unless: Sequence[str] = ()
) -> Callable[[TaskFunction[Returned]], Command[Returned]]:
    """Make an entry point of `task(cfg)`: like `hydra.main`, on `conf/<config_name>.yaml`.

    A mistake of the user ends in one message on standard error and exit code 1, without a traceback. Inside a sweep it is
    raised to Hydra instead, so that the other runs go on. Ctrl-C ends in one message and exit code 130, a sweep too.

    A task imports what it needs in its body: `--help`, a typo and a setting that is missing are then answered before torch
    is imported, and worker processes, which import the main module, do not import the whole of training.

    Args:
        config_name: the file's name without its extension.
        lists: keys whose `a,b` means a list; to Hydra a comma alone means two runs.
        alone: what is added to a command line that chooses none of the groups `unless`.
    """
    return lambda task: Command(task, config_name, lists, alone, unless)


def first_setting(arguments: Sequence[str]) -> int:
    """Where the first `key=value` stands: argparse takes settings in one row alone, before or behind an option."""
    settings = (i for i, argument in enumerate(arguments) if i and "=" in argument and not argument.startswith("-"))
    return next(settings, 1)


def chooses(arguments: Sequence[str], groups: Sequence[str]) -> bool:
    """Whether a command line chooses of one of these groups, or another config altogether."""
    pattern = rf"[+~]*({'|'.join(groups)})(@[^=]*)?(=.*)?|-cn|--config-name|--config-name=.*"
    return any(re.fullmatch(pattern, argument, re.DOTALL) for argument in arguments)


@contextmanager
def whole_errors() -> Iterator[None]:
    """Have Hydra raise what it would print in words of its own."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        os.environ.pop(FULL_ERROR, None)
        if before is not None:
            os.environ[FULL_ERROR] = before


def list_commas(arguments: Sequence[str], keys: Sequence[str]) -> list[str]:
    """`key=a,b` as `key=[a,b]` for those keys."""

    def listed(argument: str) -> str:
        key, equals, value = argument.partition("=")
        return f"{key}=[{value}]" if equals and key in keys and "," in value and "[" not in value else argument

    return [listed(argument) for argument in arguments]


def empty_group(argument: str) -> str:
    """`GROUP=null` as `GROUP=[]`, which is how Hydra writes that nothing is chosen."""
    group, _, value = argument.partition("=")
    return f"{group}=[]" if value == "null" and Path(CONFIG_FOLDER, group).is_dir() else argument


def nested(argument: str) -> str:
    """`GROUP=glob(FOLDER/PATTERN)` as the list of what matches: Hydra's own `glob` looks at a group's first level alone."""
    group, _, value = argument.partition("=")
    found = re.fullmatch(r"glob\((.*/.*)\)", value)
    folder = Path(CONFIG_FOLDER, group)
    if found is None or not folder.is_dir():
        return argument
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob(f"{found[1]}.yaml"))
    if not names:
        known = sorted(path.relative_to(folder).as_posix() for path in folder.iterdir() if path.is_dir())
        fail(f"{argument} matches nothing. Folders of {group}: {', '.join(known) or 'none'}.")
    return f"{group}={','.join(names)}"


def at_home(argument: str) -> str:
    """`KEY=~/PATH` with the home folder in place of `~`, as bash passes it and other shells do not."""
    key, equals, value = argument.partition("=")
    return f"{key}={os.path.expanduser(value)}" if equals and value.startswith("~") else argument  # noqa: PTH111


def guard(task: TaskFunction[Returned], config_name: str, program: Program) -> TaskFunction[Returned]:
    """`task` with everything around it that an entry point does."""

    @functools.wraps(task)
    def guarded(cfg: DictConfig) -> Returned:
        prepare_output()
        settle_output_folder(cfg, program)
        quiet()
        try:
            check_keys(cfg, COMMAND_SETTINGS[config_name])
            with undone_process_group():
                os.environ.pop(FULL_ERROR, None)  # further processes print their errors themselves
                return task(cfg)
        except KeyboardInterrupt:
            print("stopped by Ctrl-C", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            mistake = find_user_error(error, config_name)
            if mistake is None:
                raise
            message = full_keys(str(mistake), error, cfg)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise CompactHydraException(message) from error
            fail(message)

    return guarded


@contextmanager
def undone_process_group() -> Iterator[None]:
    """Leave no trace of a run's process group: the next run of a sweep would take itself for a further process of it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        distributed: Any = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def fail(message: str) -> NoReturn:
    """End the process with one message. Further processes of a run start late, so each has its own to say."""
    rank = os.environ.get("LOCAL_RANK", "0")
    print(f"error{'' if rank == '0' else f' (process {rank})'}: {message}", file=sys.stderr)
    sys.exit(1)


def find_user_error(error: BaseException | None, command: str = "train") -> BaseException | None:
    """The user's mistake behind an exception, if there is one; Hydra wraps what a constructor raises."""
    kinds: tuple[type[BaseException], ...] = (UserError,)
    if (
        "lightning" in sys.modules
    ):  # its own word for a Trainer argument that cannot be served, such as too many devices
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        kinds += (MisconfigurationException,)
    while error is not None and not isinstance(error, kinds):
        if isinstance(error, OSError) and error.errno in NO_SPACE:  # in a file that is no checkpoint, video or report
            return UserError(f"There is no space left for what this run writes ({error}).")
        if isinstance(error, ModuleNotFoundError) and (message := missing_package(command, error)):
            return UserError(message)
        error = error.__cause__ or error.__context__
    return error


def full_keys(message: str, error: BaseException | None, cfg: DictConfig) -> str:
    """A message about arguments of what Hydra was building, under their keys in the config."""
    while error is not None and not isinstance(error, InstantiationException):
        error = error.__cause__ or error.__context__
    found = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
    if found is None:
        return message
    return with_full_keys(message, found[1], map(str, OmegaConf.select(cfg, found[1], default={})))


def settle_output_folder(cfg: DictConfig, program: Program) -> None:
    """Make `output_dir` the folder of this very run, and let further processes of it start with the same settings.

    Lightning starts the processes of a node by repeating this command line with `hydra.run.dir` added. Inside a sweep that
    would repeat the whole sweep; there the command line becomes that of this one run.
    """
    hydra_config: Any = HydraConfig.instance().cfg
    output_dir = hydra_config.hydra.runtime.output_dir
    if "output_dir" in cfg:
        with read_write(cfg):
            cfg.output_dir = output_dir
    if hydra_config.hydra.mode == RunMode.MULTIRUN:
        with read_write(hydra_config.hydra):
            hydra_config.hydra.run.dir = output_dir
        # A launcher's job runs inside `python -m` of a module of the launcher, which Lightning would repeat.
        program.pose(list(hydra_config.hydra.overrides.task))


class CheckStart(Callback):
    """Hydra callback: refuse what Hydra or its launcher would fail on with a traceback, before the task begins."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        check_start(expand_home(config.hydra.run))
        if not is_first_process():
            return
        if is_named_by_time(config):  # of two that start in one second
            with read_write(config.hydra):
                config.hydra.run.dir = str(free_folder(Path(config.hydra.run.dir)))
        else:
            claim_or_fail(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = expand_home(config.hydra.sweep)
        check_start(folder, launcher=config.hydra.launcher._target_)
        with read_write(config.hydra):  # for runs whose names differ too: each config would name a folder of its own
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(folder))}")
        if is_first_process():
            claim_or_fail(folder)


def is_named_by_time(config: DictConfig) -> bool:
    """Whether this process alone chooses the folder: nobody gave it, and no launcher tells other processes its name."""
    given = [*config.hydra.overrides.task, *config.hydra.overrides.hydra]
    named = any(override.lstrip("+").startswith(("output_dir=", "hydra.run.dir=")) for override in given)
    return not named and not any(name in os.environ for name in RANKS)


def claim_or_fail(folder: Path) -> None:
    """Own the folder before anything is written to it, or end the process with the reason."""
    try:
        claim(folder)
    except UserError as error:
        fail(str(error))


def quoted(text: str) -> str:
    """A text as a value of Hydra's override grammar."""
    return "'" + text.replace("'", r"\'") + "'"


def expand_home(node: DictConfig) -> Path:
    """Make `dir` of a node of Hydra's config the path that is meant, before Hydra makes a folder named `~` of it."""
    with read_write(node):
        node.dir = str(to_path(node.dir))
    return Path(node.dir)


def check_start(output_dir: Path, launcher: str = "") -> None:
    """End the process unless files can be made in `output_dir` and the launcher finds what it starts jobs with."""
    try:
        check_writable(output_dir, "output_dir")
        if launcher.endswith(".SlurmLauncher") and shutil.which("srun") is None:
            raise UserError(
                "launcher=slurm finds no SLURM here (no command srun). Start it on a machine of the cluster; without one, "
                "launcher=local runs one after another, and launcher=submitit_local all at once."
            )
    except UserError as error:
        fail(str(error))
