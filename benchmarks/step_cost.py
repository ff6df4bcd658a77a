#!/usr/bin/env python
"""What a training step costs, side by side on the same batch in one run: CAML, its parts, and what it is compared with.

Rows of the table:

- floor: forward, backward and optimiser step of two plain networks of the plans, with nnU-Net's loss on the labelled half;
- A instead of a second V, and that with one part more: CMA, consistency, memory and OCC;
- CAML: all of it; and its first part: as before the ramp-up, on the labelled half alone; both with one encoder shared too;
  with one unlabelled patch for two labelled ones; and with activations that are computed again for the gradient;
- published memory: the same step with the behaviour of the published code: a memory
  on the host that keeps every correct voxel of every labelled case, and heads before the choice of voxels;
- nnUNetTrainer: its own step, on the labelled half alone.

Rounds are interleaved, so that what else the machine does hits all rows alike; ratios are medians of per-round ratios.
Networks are not compiled, in any row; with ``--compiled`` they are, in every row, as nnU-Net has it on a GPU.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fixed_plans import DATASET, SIZES, plans, prepare
from process_memory import peak_bytes

SHARED, HALF, RECOMPUTED = "shared encoder", "1 unlabelled for 2 labelled", "recomputed activations"
ROWS = ["floor", "A", "A + CMA", "A + consistency", "A + memory and OCC", "CAML", "CAML, first part", "published memory"]
ROWS += [SHARED, f"{SHARED}, first part", HALF, RECOMPUTED, "nnUNetTrainer"]


def main() -> None:
    """Parses the command line, measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="nnunet" if torch.cuda.is_available() else "hippocampus-small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--labeled", type=int, nargs="+", default=[8], metavar="N", help="labelled cases in the memory")
    parser.add_argument("--threads", type=int, default=None, help="of torch, on a CPU")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--compiled", action="store_true", help="compile networks, as nnU-Net does on a GPU")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, which needs a process per row")
    parser.add_argument("-o", "--output", type=Path, help="JSON file (default: step_cost_SIZE_DEVICE.json)")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        os.environ["nnUNet_compile"] = "T" if options.compiled else "F"
        if options.peak_of:
            print(json.dumps(peak_memory(options.peak_of, options)))
            return
        output = options.output or Path(f"step_cost_{options.size}_{options.device}.json")
        results: list[dict[str, Any]] = []
        for number, labeled in enumerate(options.labeled):
            for result in measure(options, labeled):
                results[number:] = [result]
                print(table(result), flush=True)
                output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\nWritten to {output}")


# ------------------------------------------------------------------ what is measured


def make_trainer(kind: str, size: dict[str, Any], device: str, labeled: int, **attributes: Any) -> Any:
    """A trainer of nnU-Net's or ours, initialised, with a memory for ``labeled`` cases."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_caml.memory import MemoryBank
    from nnunet_caml.trainer import nnUNetTrainerCAML

    base: Any = nnUNetTrainer if kind == "nnUNetTrainer" else nnUNetTrainerCAML
    trainer = type(base.__name__, (base,), attributes)(plans(size), "cost", "all", DATASET, torch.device(device))
    trainer.initialize()
    trainer.network.train()
    if kind == "CAML":
        caml = trainer.caml
        memory = MemoryBank([f"case{i}" for i in range(labeled)], 2, per_class=trainer.memory_per_class)
        memory.counts.fill_(100_000)  # as after every case has been visited
        memory.embeddings.normal_()
        caml.memory = memory.to(device)
        caml.train()
        trainer.iteration = 10**9  # after the ramp-up
    return trainer


def make_batch(size: dict[str, Any], trainer: Any) -> dict[str, Any]:
    """Noise with a bright blob to segment: both classes are there."""
    patch = size["patch"]
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in patch), indexing="ij"))
    blob = (np.square(grid).sum(0) < 0.4).astype(np.float32)
    images = rng.normal(0, 0.5, (4, 1, *patch)).astype(np.float32) + blob
    target = torch.from_numpy(np.repeat(blob[None, None], 2, 0))
    scales = trainer._get_deep_supervision_scales()
    targets = [
        nn.functional.interpolate(target, size=[round(n * f) for n, f in zip(patch, scale, strict=True)], mode="nearest")
        for scale in scales
    ]
    parts = [torch.from_numpy(images[:2]), torch.from_numpy(images[2:]), *targets]
    if trainer.device.type == "cuda":  # as nnU-Net's loader gives them
        parts = [part.pin_memory() for part in parts]
    return {"data": parts[0], "unlabeled": parts[1], "target": parts[2:], "keys": ["case0", "case1"]}


def floor_step(size: dict[str, Any], device: str) -> Callable[[dict], None]:
    """Two plain networks on the whole batch, nnU-Net's loss on the labelled half, each clipped and updated by itself."""
    from nnunet_caml.learning import first

    trainers = [make_trainer("nnUNetTrainer", size, device, 0) for _ in range(2)]

    def step(batch: dict) -> None:
        # copied first and joined there, as the trainer does
        images = torch.cat([batch[key].to(device, non_blocking=True) for key in ("data", "unlabeled")])
        target = [t.to(device, non_blocking=True) for t in batch["target"]]
        for t in trainers:
            t.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, enabled=device == "cuda"):
            total = sum(t.loss(first(t.network(images), 2), target) for t in trainers)
        scaler = trainers[0].grad_scaler
        (total if scaler is None else scaler.scale(total)).backward()
        for t in trainers:
            if scaler is not None:
                scaler.unscale_(t.optimizer)
            nn.utils.clip_grad_norm_(t.network.parameters(), 12)
            if scaler is None:
                t.optimizer.step()
            else:
                scaler.step(t.optimizer)
        if scaler is not None:
            scaler.update()

    return step


def make_step(row: str, size: dict[str, Any], device: str, labeled: int) -> tuple[Callable[[dict], None], Any]:
    """The step of a row of the table, and its trainer."""
    if row == "floor":
        return floor_step(size, device), None
    if row == "nnUNetTrainer":
        plain = make_trainer("nnUNetTrainer", size, device, 0)
        return lambda batch: plain.train_step({"data": batch["data"], "target": batch["target"]}), plain
    off: dict[str, Any] = {"attention": False, "lambda_c": 0.0, "lambda_o": 0.0}
    parts: dict[str, dict[str, Any]] = {
        "A": off,
        "A + CMA": {**off, "attention": True},
        "A + consistency": {**off, "lambda_c": 1.0},
        "A + memory and OCC": {**off, "lambda_o": 0.05},
        SHARED: {"share_encoder": True},
        RECOMPUTED: {"activation_checkpointing": True},
    }
    kind = row.removesuffix(", first part")
    trainer = make_trainer("CAML", size, device, labeled, **parts.get(kind, {}))
    if row != kind:
        return lambda batch: trainer.train_step({k: v for k, v in batch.items() if k != "unlabeled"}), trainer
    if row == HALF:
        return lambda batch: trainer.train_step({**batch, "unlabeled": batch["unlabeled"][:1]}), trainer
    if row == "published memory":
        from published_memory import PublishedMemory

        published = PublishedMemory(trainer.caml, labeled, int(np.prod(size["patch"])))
        trainer.caml.remember, trainer.caml.correlate = published.remember, published.correlate
    return trainer.train_step, trainer


# ------------------------------------------------------------------ how it is measured


def measure(options: argparse.Namespace, labeled: int) -> Iterator[dict[str, Any]]:
    """Seconds per step of every row and of prediction; then the same with peak memory, which takes longest."""
    size, device = SIZES[options.size], options.device
    seconds = time_steps(options, labeled)
    result: dict[str, Any] = {
        "size": options.size,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "compiled": options.compiled,
        "labeled": labeled,
        "seconds": {row: statistics.median(values) for row, values in seconds.items()},
        "prediction": prediction(size, device, options.rounds),
    }
    if "floor" in seconds:
        result["ratio_to_floor"] = {
            row: statistics.median(a / b for a, b in zip(values, seconds["floor"], strict=True))
            for row, values in seconds.items()
        }
    yield result
    if not options.no_memory:
        gc.collect()  # the rows' own processes want the memory
        if device == "cuda":
            torch.cuda.empty_cache()
        peaks = {row: peak_in_process(row, options, labeled) for row in (*options.rows, *PREDICTION.values())}
        yield {**result, "peak_bytes": {row: peak for row, peak in peaks.items() if peak is not None}}


def time_steps(options: argparse.Namespace, labeled: int) -> dict[str, list[float]]:
    """Seconds of every row's step in each round, interleaved; a row that runs out of memory is left out."""
    size, device = SIZES[options.size], options.device
    steps, batch = {}, None
    for row in options.rows:
        steps[row], trainer = make_step(row, size, device, labeled)
        if batch is None and trainer is not None:
            batch = make_batch(size, trainer)
    if batch is None:
        batch = make_batch(size, make_trainer("nnUNetTrainer", size, device, 0))
    seconds: dict[str, list[float]] = {row: [] for row in options.rows}
    for number in range(options.rounds + 2):
        for row in list(steps):
            synchronize(device)
            began = perf_counter()
            try:
                steps[row](batch)
                synchronize(device)
            except torch.OutOfMemoryError as error:
                print(f"\n{row} is left out: {error}", file=sys.stderr)
                del steps[row], seconds[row]
                continue
            if number >= 2:  # the first ones warm up
                seconds[row].append(perf_counter() - began)
        print(f"\rround {number + 1} of {options.rounds + 2}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def synchronize(device: str) -> None:
    """Waits for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


PREDICTION = {"nnUNetTrainer": "prediction, nnUNetTrainer", "nnUNetTrainerCAML": "prediction, CAML"}


def make_prediction(trainer_name: str, size: dict[str, Any], device: str) -> Callable[[Tensor], Tensor]:
    """A sliding window with the network of a trainer, as nnUNetv2_predict builds it."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_caml.trainer import nnUNetTrainerCAML

    manager = PlansManager({k: v for k, v in plans(size).items() if k != "continue_training"})
    configuration = manager.get_configuration("cost")
    trainer: Any = {"nnUNetTrainer": nnUNetTrainer, "nnUNetTrainerCAML": nnUNetTrainerCAML}[trainer_name]
    network = trainer.build_network_architecture(manager, configuration, 1, 2, False)
    predictor = nnUNetPredictor(device=torch.device(device), use_mirroring=False, allow_tqdm=False)
    predictor.manual_initialization(network.to(device), manager, configuration, None, DATASET, trainer_name, None)
    return predictor.predict_sliding_window_return_logits


def window(size: dict[str, Any]) -> Tensor:
    """An image that takes eight patches."""
    return torch.randn(1, *[round(1.5 * n) for n in size["patch"]])


def prediction(size: dict[str, Any], device: str, rounds: int) -> dict[str, float]:
    """Median seconds of a sliding window of eight patches, for the network of each trainer, interleaved."""
    data = window(size)
    predict = {name: make_prediction(name, size, device) for name in PREDICTION}
    seconds: dict[str, list[float]] = {name: [] for name in predict}
    for number in range(1 + max(3, rounds)):
        for name, one in predict.items():
            began = perf_counter()
            one(data)
            synchronize(device)
            if number:
                seconds[name].append(perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_in_process(row: str, options: argparse.Namespace, labeled: int) -> int | None:
    """Peak memory of a row's steps, in a process of its own; ``None`` if that fails, as where memory runs out."""
    command = [sys.executable, __file__, "--peak-of", row, "--size", options.size, "--device", options.device]
    command += ["--labeled", str(labeled)] + (["--threads", str(options.threads)] if options.threads else [])
    command += ["--compiled"] * options.compiled
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        print(f"The peak memory of {row} could not be measured, see above.", file=sys.stderr)
        return None
    return int(json.loads(done.stdout.splitlines()[-1]))


def peak_memory(row: str, options: argparse.Namespace) -> int:
    """Bytes on the GPU, or, on a CPU, by which a few steps raise the process's peak over what it had before the networks."""
    size, device = SIZES[options.size], options.device
    make_trainer("nnUNetTrainer", {**size, "features": [4, 4], "patch": [8, 8, 8]}, device, 0)  # imports, libraries
    before = peak_bytes()
    step: Callable[[Any], Any]
    batch: Any
    if row in PREDICTION.values():
        name = next(name for name, title in PREDICTION.items() if title == row)
        step, batch = make_prediction(name, size, device), window(size)
    else:
        step, trainer = make_step(row, size, device, options.labeled[0])
        batch = make_batch(size, trainer or make_trainer("nnUNetTrainer", size, device, 0))
    for number in range(5):
        if device == "cuda" and number == 2:  # cuDNN tries ways that need more than the one which it takes
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        step(batch)
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_bytes() - before


def table(result: dict[str, Any]) -> str:
    """A Markdown table of a result."""
    ratios, peaks = result.get("ratio_to_floor", {}), result.get("peak_bytes", {})
    lines = [
        f"\n{result['size']}, {result['device']}, torch {result['torch']}, {result['labeled']} labelled cases\n",
        "| step | seconds | to floor | peak GiB |",
        "|---|---|---|---|",
    ]
    for row, seconds in result["seconds"].items():
        ratio = f"{ratios[row]:.2f}" if row in ratios else "-"
        peak = f"{peaks[row] / 2**30:.2f}" if row in peaks else "-"
        lines.append(f"| {row} | {seconds:.3f} | {ratio} | {peak} |")
    ours, theirs = result["prediction"]["nnUNetTrainerCAML"], result["prediction"]["nnUNetTrainer"]
    lines.append(f"\nPrediction: {ours:.3f} s with CAML's network, {theirs:.3f} s with nnU-Net's: {ours / theirs:.2f}")
    if set(PREDICTION.values()) <= peaks.keys():
        stock, caml = (peaks[row] / 2**30 for row in PREDICTION.values())
        lines.append(f"Peak memory of prediction: {caml:.2f} GiB and {stock:.2f} GiB")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
