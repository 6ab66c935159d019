"""Evaluate a model: `tae/evaluate.py` is the command, `tae/evaluation/run.py` what it does."""

from tae.evaluate import evaluate, main

__all__ = ["evaluate", "main"]

if __name__ == "__main__":
    main()
