"""One rank of a training under several processes, as nnU-Net starts one per GPU; here with gloo on the CPU."""

import json
import time
from hashlib import sha256
from pathlib import Path

import torch
import torch.distributed as dist
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module
from torch.nn.parallel import DistributedDataParallel

from nnunet_caml import preparation
from nnunet_caml.networks import unwrap


def save_slowly(content: object, file: str) -> None:
    """A file system that takes its time: another rank that does not wait finds an empty file."""
    Path(file).touch()
    time.sleep(2)
    Path(file).write_text(json.dumps(content), encoding="utf-8")


def main(rank: int, ranks: int, port: str, configuration: str, name: str, output: Path) -> None:
    """Trains and validates, and writes to ``output`` what this rank ends with."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    # nnU-Net wants a GPU per rank, and says so to DistributedDataParallel
    module.DDP = lambda network, device_ids: DistributedDataParallel(network)  # type: ignore[attr-defined]
    trainer = get_trainer_from_args("101", configuration, 0, name, "nnUNetPlans", False, torch.device("cpu"))
    trainer.device = torch.device("cpu")
    preparation.save_json = save_slowly  # type: ignore[attr-defined]
    do_split = trainer.do_split

    def split_later() -> tuple:
        time.sleep(rank / 2)
        return do_split()

    trainer.do_split = split_later
    seen: list[list[str]] = []
    step = trainer.train_step

    def noted(batch: dict) -> dict:
        seen.append([sha256(batch[key].numpy().tobytes()).hexdigest() for key in ("data", "unlabeled") if key in batch])
        return step(batch)

    trainer.train_step = noted
    torch.manual_seed(rank)  # weights have to come out the same all the same
    trainer.run_training()
    trainer.perform_actual_validation()
    caml = trainer.caml
    result = {
        "V": unwrap(trainer.network).state_dict(),
        "A": unwrap(caml.auxiliary).state_dict(),
        "heads": [dict(head.named_parameters()) for head in (caml.heads_v, caml.heads_a)],
        "memory": caml.memory.counts,
        "seen": seen,
        "batch_size": trainer.batch_size,
        "supervised": trainer.logger.get_value("caml_supervised", step=-1),
    }
    torch.save(result, output)
    dist.barrier()
    dist.destroy_process_group()
