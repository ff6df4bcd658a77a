"""Several processes: both networks stay the same everywhere, each rank has its own data. On the CPU, with gloo."""

import os
import socket
from pathlib import Path

import distributed_worker
import forked
import pytest
import torch
import torch.distributed as dist
from batchgenerators.utilities.file_and_folder_operations import load_json
from conftest import NAME, Workspace
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunets
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from test_cascade import add_cascade
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunet_caml import trainer as module_of_ours
from nnunet_caml.distributed import average_gradients, on_first_rank
from nnunet_caml.trainer import nnUNetTrainerCAML


@pytest.mark.parametrize(
    ("configuration", "trainer"),
    [
        ("3d_lowres", "nnUNetTrainerCAMLShort"),
        pytest.param("3d_tiny", "nnUNetTrainerCAMLShort_sharedEncoder", marks=pytest.mark.slow),
    ],
)
def test_two_ranks(workspace: Workspace, tmp_path: Path, configuration: str, trainer: str):
    add_cascade(workspace.preprocessed / "nnUNetPlans.json")
    if configuration == "3d_lowres":
        workspace.call("nnUNetv2_preprocess", "-d", 101, "-c", configuration, "-np", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    files = [tmp_path / f"rank{rank}.pt" for rank in range(2)]
    logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]
    processes = [
        forked.start(distributed_worker.main, [rank, 2, port, configuration, trainer, file], dict(os.environ), log)
        for rank, (file, log) in enumerate(zip(files, logs, strict=True))
    ]
    for process in processes:
        process.join(600)
        process.kill()
    outputs = [log.read_text(encoding="utf-8") for log in logs]
    assert [process.exitcode for process in processes] == [0, 0], "\n".join(outputs)[-4000:]
    first, second = (torch.load(file, weights_only=False) for file in files)
    for part in ("V", "A"):
        for name, value in first[part].items():
            torch.testing.assert_close(value, second[part][name], rtol=0, atol=0, msg=f"{part} {name}")
    for ours, theirs in zip(first["heads"], second["heads"], strict=True):
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=0, msg=name)
    assert first["batch_size"] == second["batch_size"] == 1, "the plans' batch is shared between the ranks"
    assert first["supervised"] == second["supervised"], "the log is of all ranks"
    patches = [patch for rank in (first, second) for step in rank["seen"] for patch in step]
    assert any(len(step) == 2 for step in first["seen"]), "with unlabelled ones"
    assert len(set(patches)) == len(patches), "each rank draws patches of its own"
    # every rank visits every case by and by; after eight patches each has seen at least one
    assert all((rank["memory"].sum(1) > 0).any() for rank in (first, second))
    model = workspace.results / NAME / f"{trainer}__nnUNetPlans__{configuration}"
    fold = model / "fold_0"
    assert (fold / "checkpoint_final.pth").is_file()
    assert (fold / "validation" / "summary.json").is_file()
    assert sum("preprocessed now" in output for output in outputs) == 1, "one rank prepares the data"
    if configuration == "3d_lowres":  # the first stage of a cascade: the ranks share the unlabelled cases of the fold
        predicted = model / "predicted_next_stage" / "3d_cascade_fullres"
        assert sorted(f.stem for f in predicted.glob("un_*.b2nd")) == ["un_0", "un_2"]
        assert all("2 unlabelled cases are predicted" in output for output in outputs), "the ranks go by one list"


def one_rank(rank: int, folder: Path) -> None:
    """What a rank ends with goes to ``folder``."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    module = nn.Linear(2, 1)
    module.weight.grad = torch.tensor([[[1.0, 2.0]], [[4.0, 8.0]]][rank])
    if rank == 0:
        module.bias.grad = torch.tensor([6.0])
    without = nn.Linear(2, 1)
    average_gradients([module, without])
    told = on_first_rank(lambda: f"by {rank}", rank, True)

    def fail() -> None:
        raise OSError(f"disk of {rank} is full")

    try:
        on_first_rank(fail, rank, True)
        problem = "none"
    except Exception as error:
        problem = repr(error)
    gradients = [module.weight.grad.tolist(), module.bias.grad.tolist(), [p.grad for p in without.parameters()]]
    torch.save([*gradients, told, problem], folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_what_ranks_agree_on(tmp_path: Path):
    """Gradients are averaged, also where one rank has none, and not made up where all have none.

    The first rank's word counts, and its failure is everyone's.
    """
    ranks = [forked.context.Process(target=one_rank, args=(rank, tmp_path)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        rank.kill()
    ends = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert [end[:4] for end in ends] == [[[[2.5, 5.0]], [3.0], [None, None], "by 0"]] * 2
    assert ends[0][4] == "OSError('disk of 0 is full')"
    assert ends[1][4] == "RuntimeError('Rank 0 stopped: OSError: disk of 0 is full')"


def test_batch_normalisation_is_that_of_all_ranks(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In A as in V, where nnU-Net sees to it: a rank has a single labelled patch in the first part of many a training."""
    plans, dataset_json = (load_json(str(workspace.preprocessed / f"{name}.json")) for name in ("nnUNetPlans", "dataset"))
    kind = type("nnUNetTrainerCAML_BN", (nnUNetTrainerCAML, nnUNetTrainerBN), {"__init__": nnUNetTrainerCAML.__init__})
    for module, name in ((nnunets, "DDP"), (module_of_ours, "DistributedDataParallel")):  # which take such layers on GPUs only
        monkeypatch.setattr(module, name, lambda network, device_ids: network)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        trainer = kind({**plans, "continue_training": False}, "3d_tiny", 0, dataset_json)
        trainer.device = torch.device("cpu")
        trainer.initialize()
        for network in (trainer.network, trainer.caml.auxiliary):
            layers = [m for m in network.modules() if isinstance(m, _BatchNorm)]
            assert layers
            assert all(isinstance(m, nn.SyncBatchNorm) for m in layers)
    finally:
        dist.destroy_process_group()
