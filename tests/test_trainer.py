"""The trainer in this process: what is refused, what is restored, what a step does."""

import copy
import json
import pickle
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workspace, blobs, write_image
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import Tensor, nn

from nnunet_caml import checkpoints, variants
from nnunet_caml.learning import same_optimizer
from nnunet_caml.networks import unwrap
from nnunet_caml.preprocessing import preprocess
from nnunet_caml.trainer import nnUNetTrainerCAML
from nnunet_caml.unlabeled import UnlabeledDataError


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def state(trainer: nnUNetTrainerCAML) -> dict[str, Tensor]:
    """Everything that training changes."""
    tensors = {f"V.{k}": v for k, v in unwrap(trainer.network).state_dict().items()}
    tensors |= {f"caml.{k}": v for k, v in trainer.caml.state_dict().items()}
    for name, optimizer in (("V", trainer.optimizer), ("A", trainer.auxiliary_optimizer)):
        for i, entry in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer {name} {i} {k}": v for k, v in entry.items() if isinstance(v, Tensor)}
    return copy.deepcopy(tensors)


class Killed(Exception):
    pass


def test_continued_run_is_restored_bit_for_bit_and_ends_where_an_unbroken_one_does(make_trainer):
    seed(0)
    unbroken = make_trainer()
    unbroken.run_training()

    seed(0)
    broken = make_trainer(fold=1)
    broken.do_split = unbroken.do_split  # the same cases into another folder
    saved = {}

    def die(batch: dict) -> dict:
        if broken.current_epoch == 1 and broken.iteration == 6:
            raise Killed
        if broken.current_epoch == 1 and not saved:
            saved.update(state(broken))
        return type(broken).train_step(broken, batch)

    broken.train_step = die
    with pytest.raises(Killed):
        broken.run_training()

    seed(123)
    resumed = make_trainer(fold=1, resume=True)
    resumed.do_split = unbroken.do_split
    resumed.load_checkpoint(str(Path(resumed.output_folder) / "checkpoint_latest.pth"))
    restored = state(resumed)
    assert restored.keys() == saved.keys()
    assert all(torch.equal(restored[k], saved[k]) for k in saved)
    assert resumed.current_epoch == 1
    assert resumed.logger.get_value("caml_agreement", step=None) == broken.logger.get_value("caml_agreement", step=None)
    resumed.run_training()
    end, expected = state(resumed), state(unbroken)
    for name in expected:
        torch.testing.assert_close(end[name], expected[name], rtol=0, atol=0, msg=name)
    assert resumed.current_epoch == unbroken.current_epoch == 2


def add_labeled(workspace: Workspace, number: int) -> None:
    """More preprocessed labelled cases, copies of those there."""
    for i in range(4, number):
        for folder, endings in (("nnUNetPlans_3d_fullres", (".b2nd", "_seg.b2nd", ".pkl")), ("gt_segmentations", (".nii.gz",))):
            for ending in endings:
                source = workspace.preprocessed / folder / f"tr_{i % 4}{ending}"
                shutil.copy(source, source.with_name(f"tr_{i}{ending}"))
    file = workspace.preprocessed / "dataset.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**description, "numTraining": number}), encoding="utf-8")


@pytest.mark.parametrize(("labeled", "fold"), [(6, 0), (2, 4)])
def test_first_training_of_a_data_set_continues(workspace: Workspace, make_trainer, labeled: int, fold: int):
    """Where nnU-Net has made the split itself in the same process, its identifiers are numpy's strings."""
    if labeled == 6:
        add_labeled(workspace, labeled)
    else:  # a fold beyond those of the file: nnU-Net draws cases at random
        (workspace.preprocessed / "splits_final.json").write_text(json.dumps([{"train": ["tr_0"], "val": ["tr_1"]}]))
    assert labeled == 2 or not (workspace.preprocessed / "splits_final.json").exists()
    trainer = make_trainer(fold=fold)
    trainer.num_epochs = 1
    trainer.run_training()
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    torch.load(checkpoints.companion(final, 1), weights_only=True)
    again = make_trainer(fold=fold, resume=True)
    again.load_checkpoint(str(final))
    assert all(torch.equal(a, b) for a, b in zip(state(again).values(), state(trainer).values(), strict=True))


def test_a_finished_run_without_its_companion_gets_no_untrained_one(make_trainer):
    trainer = make_trainer()
    trainer.num_epochs = 1
    trainer.run_training()
    folder = Path(trainer.output_folder)
    checkpoints.remove_companions(folder / "checkpoint_final.pth")
    again = make_trainer(resume=True)
    again.num_epochs = 1
    again.load_checkpoint(str(folder / "checkpoint_final.pth"))
    again.run_training()
    assert (folder / "checkpoint_final.pth").is_file()
    assert not checkpoints.companions(folder / "checkpoint_final.pth")
    for best in (" Or, to go on from checkpoint_best.pth with --c, move checkpoint_final.pth away.", ""):
        longer = make_trainer(resume=True)
        longer.load_checkpoint(str(folder / "checkpoint_final.pth"))
        with pytest.raises(ValueError, match=rf"checkpoint_final_caml_0001\.pth is missing.*without --c\.{re.escape(best)}$"):
            longer.on_train_start()
        checkpoints.remove_companions(folder / "checkpoint_best.pth")


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RAdam", "NAdam"])
def test_any_optimiser_of_a_subclass(kind: str):
    """nnU-Net's variants use some of them, with settings of their own."""
    layer = torch.nn.Linear(2, 2)
    ours = same_optimizer(getattr(torch.optim, kind)(layer.parameters(), lr=0.125, weight_decay=0.5), layer.parameters())
    assert type(ours).__name__ == kind
    assert (ours.defaults["lr"], ours.defaults["weight_decay"]) == (0.125, 0.5)


def test_what_a_kill_leaves_of_a_companion_is_removed(tmp_path: Path):
    final = tmp_path / "checkpoint_final.pth"
    old, half, other = (
        tmp_path / f"checkpoint_{n}" for n in ("final_caml_0001.pth", "final_caml_0002.pth.partial", "best.pth")
    )
    for file in (old, half, other):
        file.touch()
    checkpoints.remove_companions(final, keep=old)
    assert sorted(tmp_path.iterdir()) == [other, old]


@pytest.mark.parametrize(("per_labeled", "unlabeled"), [(3, 6), (0.5, 1), (0.1, 1)])
def test_more_or_fewer_unlabelled_than_labelled_patches(make_trainer, per_labeled, unlabeled):
    """The whole epoch is trained on them: CMA, consistency, memory and OCC take them as they come."""
    trainer = make_trainer()
    trainer.unlabeled_per_labeled = per_labeled
    trainer.rampup_start_fraction = 0.0
    sizes = []
    trainer.train_step = lambda batch: (
        sizes.append((len(batch["data"]), len(batch["unlabeled"]))) or type(trainer).train_step(trainer, batch)
    )
    trainer.run_training()
    assert set(sizes) == {(2, unlabeled)}
    assert np.isfinite(trainer.logger.get_value("caml_consistency", step=None)).all()


def test_pretrained_weights_fill_both_networks(make_trainer, tmp_path: Path):
    source = make_trainer()
    source.initialize()
    file = tmp_path / "pretrained.pth"
    torch.save({"network_weights": source.network.state_dict()}, file)
    trainer = make_trainer()
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(file))
    trainer.on_train_start()
    x = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    for network in (trainer.network, unwrap(trainer.caml.auxiliary)):
        for a, b in zip(source.network.eval().encoder(x), network.eval().encoder(x), strict=True):
            torch.testing.assert_close(a, b)


def test_every_loss_reaches_the_parameters_it_should(make_trainer):
    seed(0)
    trainer = make_trainer()
    trainer.memory_per_class = 8
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    assert batch["unlabeled"].shape == batch["data"].shape
    images = torch.cat((batch["data"], batch["unlabeled"]))
    parts = {"V": trainer.network, "A": trainer.caml.auxiliary, "heads": nn.ModuleList(trainer.caml.heads())}
    reached = {"loss": {"V"}, "loss_a": {"A"}, "consistency": {"V", "A"}, "correlation": {"V", "A", "heads"}}
    for name, expected in reached.items():
        losses, _ = trainer.losses(images, batch["target"], list(batch["keys"]))
        for part in parts.values():
            part.zero_grad()
        losses[name].backward()
        touched = {k for k, part in parts.items() if any(p.grad is not None and p.grad.any() for p in part.parameters())}
        assert touched == expected, name


def test_cross_pseudo_supervision_is_nnunets_loss_under_the_others_labels(make_trainer):
    trainer = make_trainer()
    trainer.consistency = "labels"
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    outputs = []
    for network in (trainer.network, trainer.caml.auxiliary):
        network.register_forward_hook(lambda _module, _args, output: outputs.append(output[0]))
    images = torch.cat((batch["data"], batch["unlabeled"]))
    losses, _ = trainer.losses(images, batch["target"], list(batch["keys"]))
    v, a = (o[len(batch["data"]) :] for o in outputs)
    whole = trainer.loss.loss
    expected = (whole(v, a.argmax(1, keepdim=True)) + whole(a, v.argmax(1, keepdim=True))) / 2
    torch.testing.assert_close(losses["consistency"], expected)
    losses["consistency"].backward()
    for network in (trainer.network, trainer.caml.auxiliary):
        assert any(p.grad.any() for p in network.encoder.parameters() if p.grad is not None)


def test_while_they_weigh_nothing_no_unlabelled_patch_is_loaded(make_trainer):
    trainer = make_trainer()
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.rampup_start_fraction = 2, 4, 0.5
    trainer.memory_per_class = 8
    drawn, steps = [], []
    loaders, step = trainer.get_dataloaders, trainer.train_step

    def counting() -> tuple:
        train, validation = loaders()
        following = train.unlabeled
        train.unlabeled = (drawn.append(trainer.iteration) or batch for batch in following)
        return train, validation

    trainer.get_dataloaders = counting
    trainer.train_step = lambda batch: steps.append(result := step(batch)) or result
    trainer.run_training()
    assert drawn == [4, 5, 6, 7]
    assert [result["consistency"] > 0 for result in steps] == [False] * 4 + [True] * 4
    first, second = trainer.logger.get_value("caml_agreement", step=None)
    assert np.isnan(first)
    assert np.isfinite(second)
    assert "agreement" not in next(Path(trainer.output_folder).glob("training_log*")).read_text().split("Epoch 1")[0]


def test_variants_are_what_their_names_say():
    for name in variants.__all__:
        assert issubclass(getattr(variants, name), nnUNetTrainerCAML)
    assert variants.nnUNetTrainerCAML_20epochs.epochs == 20
    assert (variants.nnUNetTrainerCAML_noCMA.attention, variants.nnUNetTrainerCAML_noOCC.lambda_o) == (False, 0)
    assert variants.nnUNetTrainerCAML_lateStart.rampup_start_fraction > nnUNetTrainerCAML.rampup_start_fraction
    assert variants.nnUNetTrainerCAML_cleanView.clean_view
    assert variants.nnUNetTrainerCAML_copyPaste.copy_paste_share == pytest.approx(2 / 3)
    assert variants.nnUNetTrainerCAML_sharedEncoder.share_encoder
    assert variants.nnUNetTrainerCAML_paper.consistency == "sharpened"
    assert (variants.nnUNetTrainerCAML_noCMA_noOCC.attention, variants.nnUNetTrainerCAML_noCMA_noOCC.lambda_o) == (False, 0)


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerCAMLShort_sharedEncoder", "nnUNetTrainerCAML_noCMA_noOCC", "nnUNetTrainerCAML_noOCC"]
)
def test_variants_train(make_trainer, name: str):
    trainer = make_trainer(name)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.run_training()
    log = next(Path(trainer.output_folder).glob("training_log_*")).read_text(encoding="utf-8")
    assert ("L_o 0.0000" in log) == ("noOCC" in name)


def test_no_unlabelled_cases(workspace: Workspace, make_trainer):
    shutil.rmtree(workspace.raw / "imagesUn")
    with pytest.raises(UnlabeledDataError, match=r"no unlabelled cases for Dataset101_Tiny\. Put images into .*imagesUn"):
        make_trainer().on_train_start()


def test_labelled_cases_not_preprocessed(workspace: Workspace, make_trainer):
    shutil.rmtree(workspace.preprocessed / "nnUNetPlans_3d_fullres")
    with pytest.raises(UnlabeledDataError, match=r"`nnUNetv2_preprocess -d 101 -plans_name nnUNetPlans -c 3d_tiny`"):
        make_trainer().on_train_start()


def test_nothing_is_saved_where_that_is_switched_off(make_trainer):
    trainer = make_trainer()
    trainer.initialize()
    trainer.disable_checkpointing = True
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert not list(Path(trainer.output_folder).glob("*.pth*"))


@pytest.mark.parametrize("number", [3, 7, "4"])
def test_number_of_training_cases_that_does_not_match(workspace: Workspace, make_trainer, number: int | str):
    file = workspace.preprocessed / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "numTraining": number}))
    with pytest.raises(UnlabeledDataError, match=rf"numTraining = {number!r}, but 4 labelled cases"):
        make_trainer().on_train_start()


def test_case_both_labelled_and_unlabelled(workspace: Workspace, make_trainer):
    shutil.copy(workspace.raw / "imagesTr/tr_1_0000.nii.gz", workspace.raw / "imagesUn/tr_1_0000.nii.gz")
    with pytest.raises(UnlabeledDataError, match=r"Case tr_1 is labelled and unlabelled at the same time"):
        make_trainer().on_train_start()


def test_validation_case_under_another_name(workspace: Workspace, make_trainer):
    trainer = make_trainer()
    _, validation = trainer.do_split()
    shutil.copy(workspace.raw / f"imagesTr/{validation[0]}_0000.nii.gz", workspace.raw / "imagesUn/secret_0000.nii.gz")
    with pytest.raises(UnlabeledDataError, match=rf"case secret has the same voxels as labelled case {validation[0]}"):
        trainer.on_train_start()


def test_validation_cases_are_never_trained_on(make_trainer):
    trainer = make_trainer()
    trainer.on_train_start()
    _, validation = trainer.do_split()
    seen = {k for _ in range(10) for k in next(trainer.dataloader_train)["keys"]}
    assert seen
    assert not seen & set(validation)
    assert all(case.startswith("un_") for case in trainer.dataloader_train.unlabeled.data_loader.indices)


def test_labelled_case_without_foreground_is_named(workspace: Workspace, make_trainer, capsys):
    for i, case in enumerate(["tr_0", "tr_1", "tr_2", "tr_3"]):
        file = workspace.preprocessed / f"nnUNetPlans_3d_fullres/{case}.pkl"
        properties = pickle.loads(file.read_bytes())
        properties["class_locations"] = {k: [] for k in properties["class_locations"]}
        file.write_bytes(pickle.dumps(properties))
        trainer = make_trainer(fold="all")
        if i == 0:
            trainer.initialize()
            trainer.prepare_unlabeled()
            assert "no foreground in 1 labelled training case(s): tr_0." in capsys.readouterr().out
    with pytest.raises(UnlabeledDataError, match=r"None of the 4 labelled training cases .* has any foreground voxel"):
        trainer.on_train_start()


def test_a_single_labelled_case_cannot_be_split(workspace: Workspace, make_trainer):
    for case in ("tr_1", "tr_2", "tr_3"):
        for file in (workspace.preprocessed / "nnUNetPlans_3d_fullres").glob(f"{case}*"):
            file.unlink()
    file = workspace.preprocessed / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "numTraining": 1}))
    with pytest.raises(UnlabeledDataError, match=r"tr_0 is the only labelled case.*Train fold `all`"):
        make_trainer().on_train_start()
    make_trainer(fold="all").on_train_start()


def test_memory_does_not_grow_with_the_unlabelled_cases(workspace: Workspace, make_trainer):
    """The loader holds names, not voxels."""
    for i in range(20):
        write_image(blobs(300 + i)[0], workspace.raw / f"imagesUn/many_{i}_0000.nii.gz")
    trainer = make_trainer()
    trainer.on_train_start()
    loader = trainer.dataloader_train.unlabeled.data_loader
    assert len(loader.indices) == 25
    for _ in range(5):
        next(trainer.dataloader_train)
    assert len(pickle.dumps(loader._data)) < 20_000, "less than a fifth of one case"
    assert preprocess(trainer.unlabeled, 1) == 0


def test_the_users_own_split_is_followed(workspace: Workspace, make_trainer, capsys):
    splits = [{"train": ["tr_0", "tr_2"], "val": ["tr_1"]}, {"train": ["tr_1", "tr_3"], "val": ["tr_0"]}]
    (workspace.preprocessed / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")
    trainer = make_trainer(fold=1)
    trainer.on_train_start()
    assert "1 labelled case(s) are in neither part of this fold and go unused: tr_2. If" in capsys.readouterr().out
    seen = {case for _ in range(8) for case in next(trainer.dataloader_train)["keys"]}
    trainer.dataloader_train.finish()
    assert seen == set(trainer.caml.memory.case_index) == {"tr_1", "tr_3"}


def test_a_step_in_mixed_precision(make_trainer, monkeypatch):
    """As on a GPU, with the half precision that a CPU has: the same losses as in float32, and finite gradients everywhere."""
    seed(0)
    trainer = make_trainer()
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.iteration = 10**6  # after the ramp-up
    batches = [next(trainer.dataloader_train) for _ in range(2)]
    trainer.dataloader_train.finish()
    start = copy.deepcopy(trainer.caml.state_dict()), copy.deepcopy(trainer.network.state_dict())
    losses = []
    for half in (False, True):
        trainer.caml.load_state_dict(start[0])
        trainer.network.load_state_dict(start[1])
        if half:
            monkeypatch.setattr("nnunet_caml.trainer.dummy_context", lambda: torch.autocast("cpu", dtype=torch.bfloat16))
        torch.manual_seed(1)
        losses.append([trainer.train_step(batch) for batch in batches])
    for full, rounded in zip(*losses, strict=True):
        for name in ("loss", "loss_a", "consistency"):
            assert rounded[name] == pytest.approx(full[name], rel=0.1, abs=0.02), name
        assert np.isfinite(rounded["correlation"])
    # one more, to look at what the backward pass leaves
    trainer.train_step(batches[0])
    parameters = [*trainer.network.parameters(), *trainer.caml.parameters()]
    assert all(p.grad.isfinite().all() and p.dtype == torch.float32 for p in parameters if p.grad is not None)
    assert any(p.grad is not None and p.grad.any() for p in trainer.caml.heads_v.parameters())
