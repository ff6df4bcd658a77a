"""That every hyperparameter arrives where it acts, and that the variants are what their names say."""

import re

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_caml import errors, footprint, variants
from nnunet_caml.attention import AttentionLayer, CrossSampleMutualAttention
from nnunet_caml.networks import SharedEncoderAuxiliary, unwrap
from nnunet_caml.trainer import nnUNetTrainerCAML


def test_where_they_arrive(make_trainer, monkeypatch):
    trainer = make_trainer()
    values = {
        "supervised_weight": 0.7,
        "embedding_width": 24,
        "memory_per_class": 6,
        "memory_max_rows_per_class": 9,
        "num_filtered": 11,
        "max_filtered": 17,
        "max_filtered_share": 0.03,
        "occ_temperature": 0.3,
        "occ_similarity": "cosine",
        "attention_heads": 2,
        "attention_dropout": 0.25,
        "attention_downsampling": 2.0,
        "activation_checkpointing": True,
        "consistency": "sharpened",
        "sharpening_temperature": 0.4,
        "detach_consistency_target": True,
    }
    for name, value in values.items():
        setattr(trainer, name, value)
    trainer.initialize()
    caml = trainer.caml
    assert caml.heads_a.prediction.out.out_features == 24
    cases = len(caml.memory.case_index)
    assert caml.memory.embeddings.shape[2:] == (max(1, 9 // cases), 24)
    assert caml.memory.per_class == 6
    assert (caml.num_filtered, caml.max_filtered, caml.max_filtered_share) == (11, 17, 0.03)
    assert (caml.temperature, caml.similarity) == (0.3, "cosine")
    stages = unwrap(caml.auxiliary).encoder.stages
    (attention,) = (m for m in stages[1].modules() if isinstance(m, CrossSampleMutualAttention))  # at 1/2, the second one
    assert (attention.intra.heads, attention.inter.attention_dropout, attention.inter.dropout1.p) == (2, 0.25, 0.25)
    for network in (trainer.network, caml.auxiliary):
        assert all("forward" in vars(stage) for stage in unwrap(network).encoder.stages), "not computed again"

    seen = []
    monkeypatch.setattr("nnunet_caml.trainer.consistency_loss", lambda *args: seen.append(args[2:]) or args[0].mean())
    trainer.mutual_consistency(torch.zeros(4, 3, 2, 2, 2), torch.zeros(4, 3, 2, 2, 2), 2)
    assert seen == [(0.4, False, True)]
    trainer.labels = type(trainer.labels)(2, True, None)
    trainer.mutual_consistency(torch.zeros(4, 2, 2, 2, 2), torch.zeros(4, 2, 2, 2, 2), 2)
    assert seen[1] == (0.4, True, True)


def test_dropout_of_attention(monkeypatch):
    """The paper's 0.5: of the attention weights, of both residual branches and of the hidden layer."""
    layer = AttentionLayer(8, 2, 16, 0.5).train()
    rates, dropout = [], F.dropout
    monkeypatch.setattr(F, "dropout", lambda x, p=0.5, *args, **kwargs: rates.append(p) or dropout(x, p, *args, **kwargs))
    monkeypatch.setattr("nnunet_caml.attention.dropout_attention", lambda q, k, v, p: rates.append(p) or v)
    layer(torch.randn(2, 3, 8))
    assert rates == [0.5] * 4


def test_the_papers_settings():
    """Gao et al., MICCAI 2023, for 10 % labelled, in nnU-Net's training."""
    paper = {
        "supervised_weight": 0.5,
        "lambda_c": 1.0,
        "lambda_o": 0.05,
        "rampup_fraction": 0.2,
        "rampup_start_fraction": 0.0,
        "unlabeled_per_labeled": 1,
        "consistency": "sharpened",
        "sharpening_temperature": 0.1,
        "detach_consistency_target": False,
        "copy_paste_share": 0.0,
        "clean_view": False,
        "attention": True,
        "attention_heads": 4,
        "attention_dropout": 0.5,
        "attention_downsampling": 8.0,
        "embedding_width": 64,
        "occ_similarity": "dot",
        "occ_temperature": 0.1,
        "num_filtered": 12800,
        "max_filtered": 25600,
        "max_filtered_share": 1.0,
        "memory_per_class": 256,
        "share_encoder": False,
    }
    assert {name: getattr(variants.nnUNetTrainerCAML_paper, name) for name in paper} == paper


@pytest.mark.parametrize("name", [name for name in variants.__all__ if "epoch" in name])
def test_length_of_short_variants(name):
    number = re.search(r"_(\d+)epochs?$", name)
    assert number
    assert getattr(variants, name).epochs == int(number[1])


@pytest.mark.parametrize(
    ("name", "shared", "attention", "occ", "unlabeled", "recomputed"),
    [
        ("nnUNetTrainerCAML", False, True, True, 2, False),
        ("nnUNetTrainerCAML_sharedEncoder", True, True, True, 2, False),
        ("nnUNetTrainerCAML_noCMA", False, False, True, 2, False),
        ("nnUNetTrainerCAML_noOCC", False, True, False, 2, False),
        ("nnUNetTrainerCAML_noCMA_noOCC", False, False, False, 2, False),
        ("nnUNetTrainerCAML_halfUnlabeled", False, True, True, 1, False),
        ("nnUNetTrainerCAML_lessMemory", False, True, True, 2, True),
        ("nnUNetTrainerCAML_sharedEncoder_lessMemory", True, True, True, 2, True),
    ],
)
def test_parts_of_variants(make_trainer, name, shared, attention, occ, unlabeled, recomputed):
    trainer = make_trainer(name)
    trainer.initialize()
    auxiliary = unwrap(trainer.caml.auxiliary)
    assert isinstance(auxiliary, SharedEncoderAuxiliary) == shared
    assert any(isinstance(m, CrossSampleMutualAttention) for m in auxiliary.modules()) == attention
    assert (trainer.lambda_o > 0) == occ
    assert trainer.unlabeled_per_batch(2) == unlabeled
    for network in (unwrap(trainer.network), auxiliary):
        assert all(("forward" in vars(stage)) == recomputed for stage in network.get_submodule("decoder.stages"))


def test_a_network_built_with_the_older_signature(make_trainer, monkeypatch):
    """nnU-Net 2.8 deprecates it, and still takes it."""

    def build(architecture, settings, imports, channels, outputs, deep_supervision=True):
        return get_network_from_plans(
            architecture, settings, imports, channels, outputs, allow_init=True, deep_supervision=deep_supervision
        )

    monkeypatch.setattr(nnUNetTrainerCAML, "build_network_architecture", staticmethod(build))
    with pytest.warns(DeprecationWarning, match="old build_network_architecture signature"):
        (trainer := make_trainer()).initialize()
    assert isinstance(unwrap(trainer.caml.auxiliary), type(trainer.network))
    assert footprint.lower_bound(trainer).weights > 0


def test_an_optimiser_of_several_groups(make_trainer, monkeypatch):
    """Such as a slow body and a fast head for fine-tuning: which group A belongs to nobody has said."""

    def configure(trainer):
        groups = [{"params": [p], "lr": 1e-4 * 10**i} for i, p in enumerate(list(trainer.network.parameters())[:2])]
        optimizer = torch.optim.SGD(groups, 1e-2, momentum=0.9)
        return optimizer, PolyLRScheduler(optimizer, 1e-2, 10)

    monkeypatch.setattr(nnUNetTrainerCAML, "configure_optimizers", configure)
    (trainer := make_trainer()).initialize()
    assert "the optimiser of V has 2 groups of parameters" in "".join(trainer.remarks())


def test_a_loss_of_ones_own_for_deep_supervision(make_trainer, monkeypatch):
    """CAML needs the loss of one resolution, which nnU-Net's own wrapper has in it."""

    class Wrapper(torch.nn.Module):
        def forward(self, outputs, targets):
            return outputs[0].mean()

    monkeypatch.setattr(nnUNetTrainerCAML, "_build_loss", lambda self: Wrapper())
    with pytest.raises(errors.UnsupportedError, match=r"_build_loss gives a Wrapper.*DeepSupervisionWrapper.*enable_deep_sup"):
        make_trainer().initialize()
    monkeypatch.setattr(nnUNetTrainerCAML, "consistency", "sharpened")
    make_trainer().initialize()


def test_training_cases_that_the_split_does_not_name(make_trainer, monkeypatch):
    """As of a trainer that overrides ``get_tr_and_val_datasets``."""
    (trainer := make_trainer()).initialize()
    channels = unwrap(trainer.network).decoder.seg_layers[-1].in_channels
    features = torch.randn(1, channels, 4, 4, 4)
    classes = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    with pytest.raises(errors.UnsupportedError, match=r"tr_9 .* do_split .*get_tr_and_val_datasets"):
        trainer.caml.remember(["tr_9"], features, features, classes, classes, classes[:, None])
