#!/usr/bin/env python
"""What loading costs: core-seconds of a labelled and of an unlabelled batch, for few and for many unlabelled cases.

Cases of noise in nnU-Net's preprocessed format go through the loaders that training uses, in this process, which is what each
worker process does. From the seconds follows how many cores keep a GPU busy: on N of them, a pair of batches is ready every
(labelled + unlabelled) / N seconds. Many cases are a few files under many names.
"""

import argparse
import copy
import json
import os
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fixed_plans import DATASET, SIZES, plans

WRITTEN = 4


def main() -> None:
    """Parses the command line, measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--cases", type=int, nargs="+", default=[10, 10000], metavar="N", help="unlabelled cases")
    parser.add_argument("--batches", type=int, default=20, help="of each kind (default: 20)")
    parser.add_argument("-o", "--output", type=Path, help="JSON file (default: data_cost_SIZE.json)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in nnU-Net's workers
    results = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "F", "nnUNet_wandb_enabled": "0"}
        os.environ |= {name: str(Path(folder, name)) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        for number in options.cases:
            results.append(measure(Path(folder, "nnUNet_preprocessed", "Dataset001_Cost"), options, number))
    print(table(results))
    output = options.output or Path(f"data_cost_{options.size}.json")
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\nWritten to {output}")


def write_cases(folder: Path, names: list[str], shape: list[int], labeled: bool) -> None:
    """Preprocessed cases of noise, with the label of a blob or a mask of all voxels; after :data:`WRITTEN` links to these."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        if i >= WRITTEN:
            for ending in (".b2nd", "_seg.b2nd", ".pkl"):
                Path(folder, name + ending).hardlink_to(folder / (names[i % WRITTEN] + ending))
            continue
        data = rng.normal(size=(1, *shape)).astype(np.float32)
        segmentation = np.zeros((1, *shape), np.int16)
        centre = tuple(slice(n // 3, n // 2) for n in shape)
        segmentation[0][centre] = labeled
        where = np.argwhere(segmentation == 1)[::100]
        nnUNetDatasetBlosc2.save_case(data, segmentation, {"class_locations": {1: where}}, str(folder / name))


def measure(folder: Path, options: argparse.Namespace, number: int) -> dict[str, Any]:
    """Seconds per batch of both kinds with ``number`` unlabelled cases."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_caml.loading import UnlabeledCases, labeled_loader, like, unlabeled_loader

    size = SIZES[options.size]
    shape = [round(1.25 * n) for n in size["patch"]]
    if not (folder / "cost").is_dir():
        write_cases(folder / "cost", ["a", "b"], shape, labeled=True)
    names = [f"case{i:05}" for i in range(number)]
    unlabeled_folder = folder / f"cost_unlabeled_{number}"
    write_cases(unlabeled_folder, names, shape, labeled=False)
    trainer = nnUNetTrainer(plans(size), "cost", "all", DATASET, torch.device("cpu"))
    trainer.initialize()
    labeled, _ = trainer.get_dataloaders()
    before, began = rss(), perf_counter()
    cases = UnlabeledCases(infer_dataset_class(str(unlabeled_folder))(str(unlabeled_folder), names, None))
    unlabeled = like(labeled, unlabeled_loader(labeled_loader(labeled), cases, labeled_loader(labeled).batch_size))
    next(unlabeled)
    start_s = perf_counter() - began
    # as it would be if the segmentation were augmented with the image
    whole = like(labeled, copy.copy(labeled_loader(unlabeled)))
    labeled_loader(whole).transforms = labeled_loader(labeled).transforms
    loaders = {"labeled": labeled, "unlabeled": unlabeled, "unlabeled_whole": whole}
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for done in range(options.batches):
        for name, loader in loaders.items():
            np.random.seed(done)  # the same augmentation for each, which costs more or less
            torch.manual_seed(done)
            began = perf_counter()
            next(loader)
            seconds[name].append(perf_counter() - began)
        print(f"\r{number} cases: batch {done + 1} of {options.batches}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        "size": options.size,
        "cases": number,
        "start_s": start_s,
        "grown_bytes": rss() - before,
        **{f"{name}_s": statistics.mean(values) for name, values in seconds.items()},
    }


def rss() -> int:
    """Peak memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table of the results."""
    lines = [
        "| size | unlabelled cases | start s | labelled batch, core-s | unlabelled batch, core-s | with its segmentation | "
        "peak memory grown by, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        lines.append(
            f"| {r['size']} | {r['cases']} | {r['start_s']:.2f} | {r['labeled_s']:.2f} | {r['unlabeled_s']:.2f} | "
            f"{r['unlabeled_whole_s']:.2f} | "
            f"{r['grown_bytes'] / 2**20:.0f} |"
        )
    both, cores = max(r["labeled_s"] + r["unlabeled_s"] for r in results), os.cpu_count() or 1
    lines.append(f"\nWorkers on {cores} cores keep up with steps of {both / cores:.2f} s or more.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
