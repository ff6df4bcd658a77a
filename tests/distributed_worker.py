"""One rank of a training under several processes, as nnU-Net starts one per GPU; here with gloo on the CPU.

Arguments: rank, number of ranks, port, trainer, file for what this rank ends with.
"""

import sys

import torch
import torch.distributed as dist
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module
from torch.nn.parallel import DistributedDataParallel

from nnunet_caml.networks import unwrap


def main(rank: int, ranks: int, port: str, name: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    # nnU-Net wants a GPU per rank, and says so to DistributedDataParallel
    module.DDP = lambda network, device_ids: DistributedDataParallel(network)  # type: ignore[attr-defined]
    trainer = get_trainer_from_args("101", "3d_tiny", 0, name, "nnUNetPlans", False, torch.device("cpu"))
    trainer.device = torch.device("cpu")
    torch.manual_seed(rank)  # weights have to come out the same all the same
    trainer.run_training()
    trainer.perform_actual_validation()
    caml = trainer.caml
    result = {
        "V": unwrap(trainer.network).state_dict(),
        "A": unwrap(caml.auxiliary).state_dict(),
        "heads": [dict(head.named_parameters()) for head in (caml.heads_v, caml.heads_a)],
        "memory": caml.memory.counts,
        "batch_size": trainer.batch_size,
        "supervised": trainer.logger.get_value("caml_supervised", step=-1),
    }
    torch.save(result, output)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
