"""`from_pretrained`, `save_pretrained` and `push_to_hub` of the networks here: safetensors alone, and all of them."""

import io
from contextlib import redirect_stdout
from typing import Any, Self

from huggingface_hub import PyTorchModelHubMixin

from tae.runtime.errors import UserError


class StrictHubMixin(PyTorchModelHubMixin):
    """huggingface_hub's mixin, but a file that does not fit is refused instead of half loaded, and no pickle is opened."""

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs) -> Self:
        with redirect_stdout(io.StringIO()):  # it prints a line for each local folder, into whatever a program prints
            return super()._from_pretrained(strict=True, **kwargs)

    @classmethod
    def _load_as_pickle(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        """huggingface_hub's way out where a repository has no safetensors."""
        raise UserError(f"{model_file} is a pickle, which is not opened; the repository has no model.safetensors.")
