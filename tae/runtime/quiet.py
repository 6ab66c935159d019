"""Lines of libraries that nobody who runs a command can use: each by name, with its reason."""

import logging
import warnings

from tae.runtime.ownership import is_first_process

# Logger: beginnings of its messages, or a part of them.
DROPPED = {
    # Advertisements of its makers' products, and devices that this machine does not have.
    "lightning.pytorch.utilities.rank_zero": ("Tip:", "TPU available: False", "HPU available: False"),
    "lightning.fabric.utilities.rank_zero": ("Tip:",),
    # Said of every checkpoint that is written again; ours are read with weights_only=True.
    "lightning.pytorch.trainer.connectors.checkpoint_connector": ("`weights_only` was not set",),
    # On import, which a package of ColorVideoVDP causes, where there are CUDA's files and no GPU.
    "torch.utils.cpp_extension": ("No CUDA runtime is found",),
}
# Said by each Trainer; a training and its evaluation have one each.
ONCE = ("GPU available",)
WARNINGS = (
    # Lightning 2.6 on torch 2.14: its own use of a class that torch is about to rename.
    (r".*isinstance\(treespec, LeafSpec\)", FutureWarning),
    # A training without validation clips (data.shards.val=null) is a choice.
    (r"Total length of `list` across ranks is zero", UserWarning),
    # A frozen encoder and a teacher are in evaluation mode on purpose.
    (r"Found \d+ module\(s\) in eval mode at the start of training", UserWarning),
    # An evaluation gathers its clips itself, so its means are the same on all processes.
    (r"It is recommended to use `self\.log\('test/.*sync_dist=True", UserWarning),
)
LOGGERS = ("lightning.pytorch", "lightning.fabric")


def quiet() -> None:
    """Leave these lines out, show every other line of Lightning once, and the lines of one process.

    Hydra's handler at the root shows all of Lightning's lines, and so does a handler that Lightning sets up on import: here
    the root's handlers serve Lightning's loggers, which hand nothing further up.
    """
    for name, texts in DROPPED.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, Without) for one in logger.filters):
            logger.addFilter(Without(texts))
    for message, category in WARNINGS:
        warnings.filterwarnings("ignore", message, category)
    for name in LOGGERS:
        logger, handlers = logging.getLogger(name), logging.getLogger().handlers
        if handlers:
            logger.handlers, logger.propagate = list(handlers), False
        if not is_first_process():
            logger.setLevel(logging.WARNING)


class Without(logging.Filter):
    """Leave out records whose message holds one of these texts, and repetitions of those of `ONCE`."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        super().__init__()
        self.texts = texts
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if any(text in message for text in self.texts) or message in self.said:
            return False
        if message.startswith(ONCE):
            self.said.add(message)
        return True
