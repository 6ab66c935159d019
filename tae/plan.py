"""What a model costs before anything is run: parameters, FLOPs, peak memory, and the largest clip that fits.

python -m tae.plan model=sd35 data.num_frames=32 data.resolution=256 data.batch_size=1 precision=bf16 memory_gb=80

Nothing is estimated by formula. The training code itself runs on fake tensors, which have shapes and no values, and
every allocation and release that it makes is counted; so the figures follow the code. No GPU is needed to plan for one.
Tensors are counted, and not what the libraries need beside them: a GPU's context, cuDNN's workspaces, compiled kernels.
"""

from typing import Any

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main


@hydra_main("plan")
def main(cfg: DictConfig) -> dict[str, Any]:
    """Print the plan and return it."""
    from tae.planning.run import print_plan

    return print_plan(cfg)


if __name__ == "__main__":
    main()
