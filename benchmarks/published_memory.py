"""How the published code keeps its memory, to measure what that costs."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_caml.correlation import Correlation
from nnunet_caml.learning import voxel_features

__all__ = ["PublishedMemory"]


class PublishedMemory:
    """The published behaviour, in words of our own: every correct voxel of every case in NumPy arrays on the host.

    Replaces ``remember`` and ``correlate`` of a :class:`nnunet_caml.learning.MutualLearning`.
    """

    def __init__(self, caml: Any, labeled: int, voxels: int) -> None:
        self.caml = caml
        rng = np.random.default_rng(0)
        width = caml.memory.embeddings.shape[-1]
        self.bank = {f"case{i}": rng.standard_normal((voxels, width), dtype=np.float32) for i in range(labeled)}
        self.classes = {case: rng.integers(0, 2, voxels) for case in self.bank}

    @torch.no_grad()
    def remember(self, cases: list[str], v: Tensor, a: Tensor, class_v: Tensor, class_a: Tensor, target: Tensor) -> None:
        true, _ = self.caml.labels.target(target)
        self.caml.heads_v.eval()
        self.caml.heads_a.eval()
        for b, case in enumerate(cases):
            correct = ((class_v[b] == true[b]) & (class_a[b] == true[b])).flatten().nonzero()[:, 0]
            rows = [voxel_features(f[b : b + 1], correct) for f in (v, a)]
            embedded = (self.caml.heads_v.projection(rows[0]) + self.caml.heads_a.projection(rows[1])) / 2
            self.bank[case] = embedded.cpu().numpy()
            self.classes[case] = true[b].flatten()[correct].cpu().numpy()
        self.caml.heads_v.train()
        self.caml.heads_a.train()

    def correlate(self, v: Tensor, a: Tensor, class_v: Tensor, class_a: Tensor, confidence: Tensor) -> Correlation:
        bank, classes = np.concatenate(list(self.bank.values())), np.concatenate(list(self.classes.values()))
        picked = []
        for k in range(self.caml.labels.num_classes):
            candidates = np.flatnonzero(classes == k)
            if len(candidates) >= 256:
                picked.append(bank[np.random.permutation(candidates)[:256]])
        agree = (class_v == class_a).flatten().nonzero()[:, 0]
        # heads first, on all agreeing voxels, choice afterwards
        embedded = [heads(voxel_features(f, agree)) for heads, f in ((self.caml.heads_v, v), (self.caml.heads_a, a))]
        best = []
        for k in range(self.caml.labels.num_classes):
            of_class = (class_v.flatten()[agree] == k).nonzero()[:, 0]
            order = confidence.flatten()[agree][of_class].argsort(descending=True)[:12800]
            best.append(of_class[order])
        chosen = torch.cat(best)
        if not picked or len(chosen) < 2:
            return Correlation(v.sum() * 0, v.new_zeros(()))
        memory = torch.from_numpy(np.concatenate(picked)).to(v.device)
        corr_v, corr_a = (torch.softmax(e[chosen].float() @ memory.T / 0.1, 1) for e in embedded)
        return Correlation(-(corr_a * torch.log(corr_v + 1e-8)).sum(1).mean(), corr_v.detach().amax(1).mean())
