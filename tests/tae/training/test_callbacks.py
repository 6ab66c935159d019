"""The timer of training steps, on a clock that the test moves."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tae.training.callbacks import StepTimer


def test_a_step_is_all_of_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 2 clips and one second each, three to a step, in two processes."""
    now, logged = [0.0], dict[str, Any]()
    monkeypatch.setattr("tae.training.callbacks.time.perf_counter", lambda: now[0])
    trainer: Any = SimpleNamespace(
        world_size=2, accumulate_grad_batches=3, _logger_connector=SimpleNamespace(should_update_logs=True)
    )
    module: Any = SimpleNamespace(log=lambda name, value, **_: logged.update({name: value}), log_dict=logged.update)
    timer = StepTimer()
    for batch in range(1, 3 * (timer.WARM_UP_STEPS + 4) + 1):
        now[0] += 1.0
        module.between_steps = batch % 3 != 0
        timer.on_train_batch_end(trainer, module, None, {"frames": torch.zeros(2, 8, 4, 4, 3)}, batch)
    assert timer.steps == 4
    assert timer.seconds_per_step == 3.0
    assert logged == {"train/step_time": 3.0, "train/clips_per_second": 4.0, "train/frames_per_second": 32.0}


def test_steps_of_several_shapes_are_timed_by_what_they_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of 1 clip of 8 frames that take 3 seconds each, and one of 4 images that takes 1."""
    now, logged = [0.0], dict[str, Any]()
    monkeypatch.setattr("tae.training.callbacks.time.perf_counter", lambda: now[0])
    connector = SimpleNamespace(should_update_logs=False)
    trainer: Any = SimpleNamespace(world_size=1, _logger_connector=connector)
    module: Any = SimpleNamespace(
        between_steps=False, log=lambda name, value, **_: logged.update({name: value}), log_dict=logged.update
    )
    timer = StepTimer()
    warm_up = ["video"] * timer.WARM_UP_STEPS
    for number, source in enumerate([*warm_up, "video", "images", "video"], 1):
        connector.should_update_logs = number == len(warm_up) + 3
        shape = (1, 8) if source == "video" else (4, 1)
        now[0] += 3.0 if source == "video" else 1.0
        timer.on_train_batch_end(trainer, module, None, {"frames": torch.zeros(*shape, 4, 4, 3), "source": source}, 0)  # type: ignore[arg-type, typeddict-item]
    assert logged == {
        "train/step_time": 7 / 3,
        "train/clips_per_second": 6 / 7,
        "train/frames_per_second": 20 / 7,
        "train/video/step_time": 3.0,
        "train/images/step_time": 1.0,
    }
