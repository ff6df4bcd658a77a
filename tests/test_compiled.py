"""Training with networks that torch.compile has made code of, as nnU-Net has it on a GPU; here for a CPU."""

import random
import shutil

import numpy as np
import pytest
import torch
from torch._dynamo.eval_frame import OptimizedModule

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="makes code that g++ compiles")


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clean_view": True, "copy_paste_share": 2 / 3},
        {"share_encoder": True, "copy_paste_share": 2 / 3, "activation_checkpointing": True},
    ],
    ids=["defaults", "views", "shared-and-recomputed"],
)
def test_compiled_training_is_that_of_the_networks_as_they_are(make_trainer, monkeypatch, settings: dict):
    """Labelled patches alone, then with unlabelled ones, then alone again: no other values, and no third compilation."""
    results = []
    for compiled in (False, True):
        trainer = make_trainer(fold="all")
        monkeypatch.setattr(trainer, "_do_i_compile", lambda compiled=compiled: compiled)
        trainer.num_epochs, trainer.rampup_start_fraction = 10, 0.5
        trainer.attention_dropout = 0.0  # generated code draws other random numbers
        trainer.occ_similarity = "cosine"  # rows that saturate would make much of the last bits
        for name, value in settings.items():
            setattr(trainer, name, value)
        torch.manual_seed(0)
        with torch._dynamo.config.patch(automatic_dynamic_shapes=True, cache_size_limit=8):
            trainer.on_train_start()
            trainer.on_train_epoch_start()
            assert isinstance(trainer.network, OptimizedModule) == compiled
            assert isinstance(trainer.caml.auxiliary, OptimizedModule) == compiled
            for generator in (random.seed, np.random.seed, torch.manual_seed):
                generator(1)
            steps = []
            for iteration in (0, 1, 10**6, 10**6, 2):
                trainer.iteration = iteration
                if iteration == 2:
                    made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
                steps.append(trainer.train_step(next(trainer.dataloader_train)))
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == made
        trainer.dataloader_train.finish()
        results.append(steps)
    for plain, made in zip(*results, strict=True):
        for name in ("loss", "loss_a", "consistency", "correlation", "memory"):
            assert made[name] == pytest.approx(plain[name], rel=2e-3, abs=1e-4), name
    assert [step["consistency"] > 0 for step in results[1]] == [False, False, True, True, False]
