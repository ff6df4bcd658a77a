"""Cascades: the first stage's predictions of unlabelled cases.

nnU-Net predicts a labelled case for the next stage when a fold validates it. Unlabelled cases are validated by no fold, so
the folds share them by a number made of a case's name, so that a case stays with its fold when others are added; fold
``all`` predicts all. They are made by nnU-Net's functions and lie where those of the labelled cases do, in
``predicted_next_stage/`` of the trainer's model folder; the second stage loads both alike.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import resample_and_save
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from tqdm import tqdm

from nnunet_caml import checkpoints, distributed
from nnunet_caml.errors import WorkerError, read_json
from nnunet_caml.preprocessing import preprocess
from nnunet_caml.states import CaseState
from nnunet_caml.unlabeled import UnlabeledDataError, UnlabeledDataset
from nnunet_caml.workers import pool

__all__ = ["PREDICTED", "fold_share", "predict_for_next_stage", "with_previous_stage"]

#: nnU-Net's folder for them
PREDICTED = "predicted_next_stage"
#: of a fold: which unlabelled cases it predicts, with which weights, and of which voxels
RECORD = "unlabeled_predictions.json"
ENDINGS = (".b2nd", ".npz", ".npy")
BARRIER_EVERY = 20


def fold_share(cases: Sequence[str], fold: Any, splits_file: Path) -> list[str]:
    """The unlabelled cases that a fold predicts.

    Args:
        cases: Identifiers.
        fold: Number of the fold, or ``"all"``.
        splits_file: nnU-Net's ``splits_final.json``.
    """
    ordered = sorted(cases)
    if fold == "all" or not splits_file.is_file():
        return ordered
    folds = len(read_json(splits_file))
    return [case for case in ordered if int(sha256(case.encode()).hexdigest()[:16], 16) % folds == int(fold) % folds]


def predict_for_next_stage(trainer: Any) -> None:
    """Predicts this fold's share of the unlabelled cases for every next stage.

    Predictions by the same weights that are newer than their case are kept, so ``--val`` continues what was interrupted.
    All are made anew where the weights are others than before (``--val_best``), or where another fold has predicted some of
    the cases since (``all`` and a fold of a number). Unlabelled cases that came since are preprocessed first; those that the
    next stage lacks are left out. Under several GPUs every rank does its part.

    Args:
        trainer: An ``nnUNetTrainerCAML`` after its validation, whose network is V.
    """
    stages = trainer.configuration_manager.next_stage_names
    if not stages:
        return
    targets = {n: UnlabeledDataset.create(trainer.plans_manager, n, trainer.dataset_json) for n in stages}

    def to_predict() -> list[str]:
        for dataset in (trainer.unlabeled, *targets.values()):
            preprocess(dataset, min(default_num_processes, os.cpu_count() or 1), say=trainer.print_to_log_file)
        splits_file = Path(trainer.preprocessed_dataset_folder_base) / "splits_final.json"
        share = fold_share(trainer.unlabeled.usable_cases(), trainer.fold, splits_file)
        for stage, dataset in targets.items():
            done = set(dataset.done_cases())
            if missing := [case for case in share if case not in done]:
                trainer.print_to_log_file(
                    f"WARNING: {len(missing)} unlabelled cases, such as {missing[0]}, are not preprocessed for {stage} and "
                    f"not predicted for it. Run `nnunet-caml preprocess -d {trainer.plans_manager.dataset_name} -c {stage} "
                    f"-p {trainer.plans_manager.plans_name}` where the raw data is, then nnUNetv2_train with --val."
                )
            share = [case for case in share if case in done]
        _record_weights(trainer, share)
        missing = [case for case in share if not _is_predicted(trainer, case, targets)]
        _record_contents(trainer, set(share) - set(missing), targets)
        return missing

    # one rank says which, because the first predictions of another one would change the answer
    share = distributed.on_first_rank(to_predict, trainer.local_rank, trainer.is_ddp)
    ranks = dist.get_world_size() if trainer.is_ddp else 1
    mine = share[trainer.local_rank :: ranks]
    trainer.print_to_log_file(f"{len(share)} unlabelled cases are predicted for {', '.join(stages)}.")
    trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    processes = max(1, default_num_processes)
    try:
        with pool(processes) as workers:
            waiting: list[Future] = []
            for number, case in enumerate(tqdm(mine, "Predicting unlabelled cases", disable=trainer.local_rank != 0)):
                waiting += [workers.submit(resample_and_move, *task) for task in _tasks(trainer, case, targets)]
                while len(waiting) > 2 * processes:
                    waiting.pop(0).result()
                # NCCL gives up after minutes without a sign of the others
                if trainer.is_ddp and (number + 1) % BARRIER_EVERY == 0 and number < len(share) // ranks:
                    dist.barrier()
            for future in waiting:
                future.result()
    except BrokenProcessPool:
        raise WorkerError(
            f"A worker process died while predicting unlabelled cases for {', '.join(stages)}, most likely because memory ran "
            f"out with {processes} process(es). The training and the predictions finished so far are kept: set "
            f"nnUNet_def_n_proc to less and call the same nnUNetv2_train with --val."
        ) from None
    if trainer.is_ddp:
        dist.barrier()
    if trainer.local_rank == 0:
        _record_contents(trainer, json.loads(_record(trainer).read_text(encoding="utf-8"))["cases"], targets)
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)


def resample_and_move(logits: torch.Tensor, shape: Sequence[int], output: str, *further: Any) -> None:
    """nnU-Net's ``resample_and_save``, whole or not at all.

    Args:
        logits: ``(K, *spatial)``.
        shape: Of the case in the next stage.
        output: File to write, without its ending.
        further: Further arguments of ``resample_and_save``.
    """
    final = Path(output)
    half = final.with_name(f".{final.name}.{uuid4().hex}")
    resample_and_save(logits, shape, str(half), *further)
    for file in [half.with_name(half.name + ending) for ending in ENDINGS]:
        if file.is_file():
            file.replace(final.with_name(final.name + file.suffix))


def _folder(trainer: Any, stage: str) -> Path:
    return Path(trainer.output_folder_base) / PREDICTED / stage


def _record(trainer: Any) -> Path:
    return Path(trainer.output_folder) / RECORD


def _record_weights(trainer: Any, share: Sequence[str]) -> None:
    """Writes down which cases this fold predicts, and with which weights: predictions older than the record are of others.

    The time of a record stays where the weights are the same and no other fold has begun to predict one of the cases since.
    """
    file = _record(trainer)
    wanted = {"epoch_end_timestamp": checkpoints.run_token(trainer.logger)[-1:], "cases": list(share)}
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    since = file.stat().st_mtime_ns if before else 0
    others = [other for other in Path(trainer.output_folder_base).glob(f"fold_*/{file.name}") if other != file]
    overtaken = any(
        other.stat().st_mtime_ns >= since and set(share) & set(json.loads(other.read_text(encoding="utf-8"))["cases"])
        for other in others
    )
    half = file.with_suffix(".partial")
    half.write_text(json.dumps(wanted), encoding="utf-8")
    if before.get("epoch_end_timestamp") == wanted["epoch_end_timestamp"] and not overtaken:
        os.utime(half, ns=(since, since))
    half.replace(file)


def _record_contents(trainer: Any, cases: Iterable[str], targets: dict[str, UnlabeledDataset]) -> None:
    """Adds to the record, without changing its time, of which voxels of the next stages the predictions are that are there."""
    file = _record(trainer)
    states = {stage: {case: CaseState.read(target.state_file(case)) for case in cases} for stage, target in targets.items()}
    contents = {stage: {case: state.content for case, state in known.items() if state} for stage, known in states.items()}
    half, status = file.with_suffix(".partial"), file.stat()
    half.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "contents": contents}), encoding="utf-8")
    os.utime(half, ns=(status.st_mtime_ns, status.st_mtime_ns))
    half.replace(file)


def _is_predicted(trainer: Any, case: str, targets: dict[str, UnlabeledDataset]) -> bool:
    for stage, target in targets.items():
        file = _prediction(_folder(trainer, stage), case)
        older = (_record(trainer), target.state_file(case))
        if file is None or any(file.stat().st_mtime <= other.stat().st_mtime for other in older):
            return False
    return True


def _prediction(folder: Path, case: str) -> Path | None:
    return next((folder / (case + e) for e in ENDINGS if (folder / (case + e)).is_file()), None)


def _tasks(trainer: Any, case: str, targets: dict[str, UnlabeledDataset]) -> list[tuple]:
    """Arguments of ``resample_and_save`` for each next stage, with the logits of a case."""
    dataset = trainer.unlabeled.dataset_class()(
        str(trainer.unlabeled.folder), [case], trainer.folder_with_segs_from_previous_stage
    )
    data, _, previous, properties = dataset.load_case(case)
    data = data[:]
    if previous is not None:
        one_hot = convert_labelmap_to_one_hot(previous[:], trainer.label_manager.foreground_labels, output_dtype=data.dtype)
        data = np.vstack((data, one_hot))
    predictor = nnUNetPredictor(device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(np.array(data))).cpu()
    tasks = []
    for stage, target in targets.items():
        _folder(trainer, stage).mkdir(parents=True, exist_ok=True)
        dataset_class = target.dataset_class()
        shape = dataset_class(str(target.folder), [case]).load_case(case)[0].shape[1:]
        tasks.append(
            (
                logits,
                shape,
                str(_folder(trainer, stage) / case),
                trainer.plans_manager,
                trainer.configuration_manager,
                properties,
                trainer.dataset_json,
                1,
                dataset_class,
            )
        )
    return tasks


def with_previous_stage(
    folder: str,
    stage: str,
    labeled: Sequence[str],
    dataset: UnlabeledDataset,
    unlabeled: Sequence[str],
    say: Callable[[str], None],
) -> list[str]:
    """The unlabelled cases that the first stage has predicted, as they are now.

    Args:
        folder: nnU-Net's folder of these predictions.
        stage: Name of the first stage's configuration, for the message.
        labeled: Labelled cases, training and validation; each needs a prediction.
        dataset: The unlabelled data of the second stage.
        unlabeled: Unlabelled cases; those without one, or whose image was another one then, are left out, with a warning.
        say: Prints to the log.

    Raises:
        UnlabeledDataError: A labelled case has no prediction, or no unlabelled case has.
    """
    way_out = (
        f"Train every fold of {stage} (or fold all) with the same trainer first; for cases that were added since, call its "
        f"nnUNetv2_train again with --val."
    )
    for case in labeled:
        if _prediction(Path(folder), case) is None:
            raise UnlabeledDataError(f"Labelled case {case} has no prediction of the first stage in {folder}. {way_out}")
    predicted: dict[str, set[str]] = defaultdict(set)
    for file in Path(folder).parents[1].glob(f"fold_*/{RECORD}"):
        record = json.loads(file.read_text(encoding="utf-8"))
        contents = record.get("contents", {}).get(Path(folder).name, {})
        for case in record["cases"] if "contents" in record else ():
            predicted[case].add(contents.get(case, ""))  # none, if a kill came before its prediction

    def is_of_another_image(case: str) -> bool:
        state = CaseState.read(dataset.state_file(case))
        return state is not None and case in predicted and state.content not in predicted[case]

    usable = [case for case in unlabeled if _prediction(Path(folder), case) is not None and not is_of_another_image(case)]
    if not usable:
        raise UnlabeledDataError(f"No unlabelled case has a prediction of the first stage in {folder}. {way_out}")
    if missing := sorted(set(unlabeled) - set(usable)):
        say(
            f"WARNING: {len(missing)} unlabelled cases, such as {missing[0]}, have no prediction of the first stage in "
            f"{folder}, or one of another image, and are left out; {len(usable)} are trained with. {way_out}"
        )
    return usable
