#!/usr/bin/env python
"""nnU-Net's integration procedure with CAML in the stock trainer's place.

Four label scenarios of the Hippocampus data (labels, regions, ignore label, regions with ignore label), each with all four
configurations (2d, 3d_fullres, 3d_lowres, 3d_cascade_fullres), in cross-validation; then nnUNetv2_find_best_configuration,
and the inference instructions that it writes, as they are. It checks the outcome by itself: every run ends, every Dice is
finite, and the cross-validated Dice of every configuration is above that of calling everything foreground.

Small by default, for a CPU. ``--full`` keeps the networks that nnU-Net plans and five epochs of 250 iterations, for a GPU.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.utilities.crossval_split import generate_crossval_split

TRAINER = "nnUNetTrainerCAML_integration"
CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
LABELS = {"background": 0, "anterior": 1, "posterior": 2}
REGIONS = {"background": 0, "hippocampus": [1, 2], "posterior": 2}
SCENARIOS: dict[str, dict[str, Any]] = {
    "labels": {"labels": LABELS},
    "regions": {"labels": REGIONS, "regions_class_order": [1, 2]},
    "ignore": {"labels": {**LABELS, "ignore": 3}},
    "regions_ignore": {"labels": {**REGIONS, "ignore": 3}, "regions_class_order": [1, 2]},
}
LABELED, UNLABELED, TEST = 10, 6, 3


class IntegrationError(AssertionError):
    """The outcome is not as it should be."""


def main() -> int:
    """Runs the procedure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("NNUNET_CAML_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    source = shared / "data" / "hippocampus" / "Task04_Hippocampus"
    parser.add_argument("--source", type=Path, default=source, help="folder of the Decathlon task (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=Path("integration_output"), help="work folder, made anew")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation, at least 2 (default: 5)")
    parser.add_argument("--full", action="store_true", help="networks as planned, five epochs of 250 iterations")
    jobs = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=jobs, help="scenarios side by side (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if not (options.source / "dataset.json").is_file():
        print(f"{options.source} is not the Hippocampus task of the Decathlon: name its folder with --source.", file=sys.stderr)
        return 1
    if len(options.scenarios) > 1:
        return run_side_by_side(options)
    shutil.rmtree(options.output, ignore_errors=True)
    root = options.output.resolve()
    os.environ |= {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")} | {
        "nnUNet_extTrainer": str(Path(__file__).parent / "trainers"),
        "INTEGRATION_EPOCHS": "5" if options.full else "2",
        "INTEGRATION_ITERATIONS": "250" if options.full else "140",
        "nnUNet_wandb_enabled": "0",
    }
    if not options.full:
        os.environ |= {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "nnUNet_compile": "F", "INTEGRATION_THREADS": "1"}
    from nnunet_caml.startup import add_discovery_folder

    add_discovery_folder()
    began = monotonic()
    try:
        run_scenario(options.scenarios[0], options, root, began)
    except IntegrationError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(f"The procedure succeeded in {(monotonic() - began) / 60:.1f} minutes.")
    return 0


def run_side_by_side(options: argparse.Namespace) -> int:
    """Runs each scenario in a process of its own; the whole output goes to log files, news of it to the terminal."""
    began = monotonic()
    options.output.mkdir(parents=True, exist_ok=True)

    def one(name: str) -> int:
        command = [sys.executable, __file__, "--source", options.source, "-o", options.output / name, "--scenarios", name]
        command += ["--folds", options.folds, "--device", options.device] + ["--full"] * options.full
        with (options.output / f"{name}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
            )
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                log.flush()
                if line.startswith(("[", "FAILED", f"{name}, ")):
                    print(line if name in line else f"{name}: {line}", end="", flush=True)
            return process.wait()

    with ThreadPoolExecutor(options.jobs) as pool:
        statuses = dict(zip(options.scenarios, pool.map(one, options.scenarios), strict=True))
    failed = [name for name, status in statuses.items() if status]
    for name in failed:
        print(f"FAILED: {name}, see {options.output / name}.log", file=sys.stderr)
    print(f"{len(statuses) - len(failed)} of {len(statuses)} scenarios succeeded in {(monotonic() - began) / 60:.1f} minutes.")
    return 1 if failed else 0


def call(command: str, *paths: object) -> None:
    """Calls the function of a console script with its arguments, in this process, which saves starting Python each time."""
    name, *arguments = command.split()
    (script,) = entry_points(group="console_scripts", name=name)
    sys.argv = [name, *arguments, *map(str, paths)]
    print(f"$ {shlex.join(sys.argv)}", flush=True)
    try:
        script.load()()
    except SystemExit as end:
        if end.code:
            raise IntegrationError(f"{name} ended with status {end.code}") from end


def run_scenario(name: str, options: argparse.Namespace, root: Path, began: float) -> None:
    """One label scenario from the raw data to the inference instructions."""
    number = 990 + list(SCENARIOS).index(name)
    dataset = f"Dataset{number}_Integration_{name}"
    raw = root / "nnUNet_raw" / dataset
    chance = write_dataset(options.source, raw, SCENARIOS[name])
    call(f"nnUNetv2_plan_and_preprocess -d {number} -npfp 1 --no_pp --verify_dataset_integrity")
    edit_plans(root / "nnUNet_preprocessed" / dataset / "nnUNetPlans.json", small=not options.full)
    call(f"nnUNetv2_preprocess -d {number} -c 2d 3d_fullres 3d_lowres -np 1 1 1")
    # the cascade needs the first stage's predictions of all labelled cases, so there are as many folds as are trained
    cases = sorted(p.name.removesuffix(".nii.gz") for p in (raw / "labelsTr").iterdir())
    splits = generate_crossval_split(cases, seed=12345, n_splits=options.folds)
    save_json(splits, str(root / "nnUNet_preprocessed" / dataset / "splits_final.json"))
    if not options.full:
        os.environ["nnUNet_n_proc_DA"] = "0"
    for configuration in CONFIGURATIONS:
        for fold in range(options.folds):
            call(f"nnUNetv2_train {number} {configuration} {fold} -tr {TRAINER} --npz -device {options.device}")
            print(f"[{(monotonic() - began) / 60:.1f} min] {name}, {configuration}, fold {fold} is trained", flush=True)
    folds = " ".join(map(str, range(options.folds)))
    call(f"nnUNetv2_find_best_configuration {number} -tr {TRAINER} -f {folds} -np 1 -c {' '.join(CONFIGURATIONS)}")
    results = root / "nnUNet_results" / dataset
    check(results, name, options.folds, chance)
    plans = json.loads((root / "nnUNet_preprocessed" / dataset / "nnUNetPlans.json").read_text(encoding="utf-8"))
    first_stages = {c: v["previous_stage"] for c, v in plans["configurations"].items() if "previous_stage" in v}
    instructions = results / "inference_instructions.txt"
    follow_instructions(instructions, raw / "imagesTs", root / "predicted" / name, options.device, first_stages)
    os.environ["nnUNet_n_proc_DA"] = "1" if not options.full else os.environ.get("nnUNet_n_proc_DA", "12")


def write_dataset(source: Path, raw: Path, description: dict[str, Any]) -> float:
    """Writes the raw data set of a scenario.

    Returns:
        Dice that calling every voxel foreground has in the mean, the level of chance.
    """
    cases = sorted(p.name.removesuffix(".nii.gz") for p in (source / "labelsTr").glob("hippocampus_*.nii.gz"))
    parts = {"Tr": cases[:LABELED], "Un": cases[LABELED : LABELED + UNLABELED], "Ts": cases[-TEST:]}
    for part, members in parts.items():
        (raw / f"images{part}").mkdir(parents=True)
        for case in members:
            shutil.copy(source / "imagesTr" / f"{case}.nii.gz", raw / f"images{part}" / f"{case}_0000.nii.gz")
    (raw / "labelsTr").mkdir()
    chance = []
    for case in parts["Tr"]:
        image = sitk.ReadImage(str(source / "labelsTr" / f"{case}.nii.gz"))
        label = sitk.GetArrayFromImage(image)
        share = np.mean(label == 2)
        chance.append(2 * share / (1 + share))
        if "ignore" in description["labels"]:
            label[::2] = 3  # every other slice is not annotated
        written = sitk.GetImageFromArray(label)
        written.CopyInformation(image)
        sitk.WriteImage(written, str(raw / "labelsTr" / f"{case}.nii.gz"))
    content = {"channel_names": {"0": "MRI"}, "numTraining": LABELED, "file_ending": ".nii.gz", **description}
    (raw / "dataset.json").write_text(json.dumps(content, indent=2))
    return float(np.mean(chance))


def edit_plans(file: Path, small: bool) -> None:
    """Adds 3d_lowres and 3d_cascade_fullres by hand, as nnU-Net's procedure does; makes everything small if asked for."""
    plans = json.loads(file.read_text(encoding="utf-8"))
    configurations = plans["configurations"]
    if small:
        shrink(configurations["2d"], [2.0, 2.0], [16, 24], 4, [8, 16, 32])
        shrink(configurations["3d_fullres"], [2.0, 2.0, 2.0], [16, 24, 16], 2, [8, 16, 32])
    full = configurations["3d_fullres"]
    configurations["3d_lowres"] = {
        "inherits_from": "3d_fullres",
        "data_identifier": "nnUNetPlans_3d_lowres",
        "spacing": [s * 1.3 for s in full["spacing"]],
        "next_stage": "3d_cascade_fullres",
    }
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    file.write_text(json.dumps(plans, indent=4), encoding="utf-8")


def shrink(configuration: dict[str, Any], spacing: list[float], patch: list[int], batch: int, features: list[int]) -> None:
    """A coarse, small version of a configuration."""
    dim, stages = len(patch), len(features)
    configuration.update(spacing=spacing, patch_size=patch, batch_size=batch)
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=stages,
        features_per_stage=features,
        kernel_sizes=[[3] * dim] * stages,
        strides=[[1] * dim] + [[2] * dim] * (stages - 1),
        n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1),
    )


def check(results: Path, name: str, folds: int, chance: float) -> None:
    """Every validation is there and finite, and better than chance in cross-validation.

    Raises:
        IntegrationError: It is not so.
    """
    for configuration in CONFIGURATIONS:
        values = []
        for fold in range(folds):
            file = results / f"{TRAINER}__nnUNetPlans__{configuration}" / f"fold_{fold}" / "validation" / "summary.json"
            if not file.is_file():
                raise IntegrationError(f"{file} is missing: the run did not end")
            values.append(json.loads(file.read_text(encoding="utf-8"))["foreground_mean"]["Dice"])
        if not np.isfinite(values).all():
            raise IntegrationError(f"{name}, {configuration}: Dice of the folds is {values}")
        print(f"{name}, {configuration}: Dice {np.mean(values):.3f} (chance {chance:.3f})", flush=True)
        if np.mean(values) <= chance:
            raise IntegrationError(f"{name}, {configuration}: Dice {np.mean(values):.3f} is not above chance, {chance:.3f}")


def run_instruction(words: list[str], path: str) -> None:
    """Runs a command with ``PATH`` as given.

    Raises:
        IntegrationError: It failed.
    """
    print(f"$ {shlex.join(words)}", flush=True)
    if subprocess.run(words, env={**os.environ, "PATH": path}, check=False).returncode:
        raise IntegrationError(f"an instruction failed: {shlex.join(words)}")


def follow_instructions(file: Path, images: Path, output: Path, device: str, first_stages: dict[str, str]) -> None:
    """Runs the commands of nnU-Net's instructions, with real folders for its placeholders.

    Of a cascade nnU-Net 2.8.1 tells the second stage only, without the first one's predictions: these are added.

    Raises:
        IntegrationError: A command failed, or there are no segmentations.
    """
    commands = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("nnUNetv2_")]
    if not commands:
        raise IntegrationError(f"{file} has no commands")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        words = []
        for word in command.split():
            if word == "INPUT_FOLDER":
                words.append(str(images))
            elif word.startswith("OUTPUT_FOLDER"):
                words.append(str(output / word))
            else:
                words.append(word)
        if words[0] == "nnUNetv2_predict":
            words += ["-device", device]
            first_stage = first_stages.get(words[words.index("-c") + 1])
            if first_stage is not None and "-prev_stage_predictions" not in words:
                print("nnU-Net's instructions leave out the first stage of the cascade: predicted here.", flush=True)
                before = words.copy()
                before[before.index("-c") + 1] = first_stage
                low = before[before.index("-o") + 1] = f"{words[words.index('-o') + 1]}_PREV_STAGE"
                run_instruction(before, path)
                words += ["-prev_stage_predictions", low]
        run_instruction(words, path)
    for folder in [p for p in output.iterdir() if p.is_dir()]:
        if len(list(folder.glob("*.nii.gz"))) != TEST:
            raise IntegrationError(f"{folder} does not hold {TEST} segmentations")


if __name__ == "__main__":
    sys.exit(main())
