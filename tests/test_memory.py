"""The bounded memory bank draws as one that keeps every voxel would."""

import pytest
import torch
from scipy import stats

from nnunet_caml.memory import MemoryBank, random_correct_voxels, uniform_order_statistics


def test_order_statistics_are_those_of_uniform_numbers():
    """Kolmogorov-Smirnov of the 1st, 2nd and 5th of 9; wrong alarm with probability 1e-3 each, with a fixed seed."""
    torch.manual_seed(0)
    drawn = uniform_order_statistics(torch.full((4000,), 9), 5).exp().double()
    assert (drawn.diff(dim=1) < 0).all()
    for i in (0, 1, 4):
        assert stats.kstest(drawn[:, i].numpy(), stats.beta(9 - i, i + 1).cdf).pvalue > 1e-3
    assert (uniform_order_statistics(torch.tensor([2, 0]), 3) == float("-inf")).tolist() == [
        [False, False, True],
        [True, True, True],
    ]


def test_sample_is_distributed_as_from_every_voxel():
    """Three cases with 5, 50 and 500 voxels of one class; 16 are drawn each time.

    From a bank with every voxel, the number drawn from a case is hypergeometric. Here each case stores at most 16
    voxels. Chi-square over 3000 draws; wrong alarm with probability 1e-3 per case.
    """
    torch.manual_seed(1)
    counts, per_class, draws = [5, 50, 500], 16, 3000
    bank = MemoryBank(["a", "b", "c"], 1, width=2, per_class=per_class)
    assert bank.slots == per_class
    drawn: list[list[int]] = [[], [], []]
    for _ in range(draws):
        for case, n in enumerate(counts):
            positions, count = random_correct_voxels(torch.ones(n).bool(), torch.zeros(n).long(), 1, bank.slots)
            embeddings = torch.stack([torch.full_like(positions, case), positions], -1).float()
            bank.write("abc"[case], embeddings, count)
        sample = bank.sample()
        assert sample.valid.all()
        # without replacement: all different
        assert len({tuple(e) for e in sample.embeddings.tolist()}) == per_class
        for case in range(3):
            drawn[case].append(int((sample.embeddings[:, 0] == case).sum()))
    for case, n in enumerate(counts):
        expected = stats.hypergeom(sum(counts), n, per_class).pmf(range(per_class + 1)) * draws
        observed = torch.tensor(drawn[case]).bincount(minlength=per_class + 1).numpy()
        # merge what is rarely expected into one bin
        common = expected >= 5
        e = [*expected[common], max(expected[~common].sum(), 1e-9)]
        o = [*observed[common], observed[~common].sum()]
        assert stats.chisquare(o, [x * sum(o) / sum(e) for x in e]).pvalue > 1e-3


def test_every_voxel_of_a_case_is_equally_likely():
    """Uniform over the 40 voxels of a case of which 8 are stored at a time; wrong alarm with probability 1e-3."""
    torch.manual_seed(2)
    bank = MemoryBank(["a"], 1, width=1, per_class=8)
    hits = torch.zeros(40)
    for _ in range(3000):
        positions, count = random_correct_voxels(torch.ones(40).bool(), torch.zeros(40).long(), 1, bank.slots)
        bank.write("a", positions.unsqueeze(-1).float(), count)
        hits[bank.sample().embeddings[:, 0].long()] += 1
    assert stats.chisquare(hits.numpy()).pvalue > 1e-3


def test_a_class_below_the_number_to_draw_has_no_memory_and_a_visit_overwrites():
    bank = MemoryBank(["a", "b"], 2, width=1, per_class=4)
    bank.write("a", torch.ones(2, 4, 1), torch.tensor([9, 3]))
    assert bank.sample().valid.tolist() == [True] * 4 + [False] * 4
    assert bank.fill().item() == 0.5
    bank.write("b", 2 * torch.ones(2, 1, 1), torch.tensor([0, 1]))
    sample = bank.sample()
    assert sample.valid.all()
    assert sorted(sample.embeddings[4:, 0].tolist()) == [1, 1, 1, 2]
    bank.write("a", torch.ones(2, 4, 1), torch.tensor([0, 0]))
    assert not bank.sample().valid.any()


@pytest.mark.parametrize("cases", [1, 8, 1000, 100_000])
def test_size_is_bounded(cases):
    bank = MemoryBank([str(i) for i in range(cases)], 2)
    assert bank.slots == {1: 256, 8: 256, 1000: 65, 100_000: 1}[cases]
    assert bank.embeddings.shape == (cases, 2, bank.slots, 64)


@pytest.mark.parametrize(("cases", "max_rows"), [(3, 8), (3, 10), (5, 8), (7, 8), (9, 8)])
def test_a_bound_that_the_cases_do_not_divide_leaves_enough_to_draw(cases: int, max_rows: int):
    """Three cases with eight rows would have two each, which are six, and none could ever draw eight."""
    bank = MemoryBank([f"c{i}" for i in range(cases)], 1, 2, per_class=8, max_rows_per_class=max_rows)
    for i in range(cases):
        bank.write(f"c{i}", torch.full((1, bank.slots, 2), float(i)), torch.tensor([50]))
    embeddings, valid = bank.sample()
    assert embeddings.shape == (8, 2)
    assert valid.all()


def test_slots_that_are_empty_are_not_drawn():
    """Where cases share the rows, a class can hold enough voxels but too few stored ones."""
    bank = MemoryBank(["a", "b", "c"], 1, width=1, per_class=4, max_rows_per_class=6)
    bank.write("b", torch.ones(1, 2, 1), torch.tensor([1000]))
    sample = bank.sample()
    assert sample.valid.tolist() == (sample.embeddings[:, 0] == 1).tolist()
    assert sample.valid.sum() == 2


def test_correct_voxels_only():
    target = torch.tensor([0, 0, 1, 1, 1])
    correct = torch.tensor([1, 0, 1, 1, 0]).bool()
    positions, counts = random_correct_voxels(correct, target, 3, 4)
    assert counts.tolist() == [1, 2, 0]
    assert positions[0, 0] == 0
    assert sorted(positions[1, :2].tolist()) == [2, 3]


def test_slots_that_a_case_never_filled_are_not_drawn_by_rotation():
    torch.manual_seed(0)
    bank = MemoryBank(["a", "b"], 1, width=1, per_class=4)
    bank.write("a", torch.ones(1, 2, 1), torch.tensor([2]))
    bank.write("b", torch.full((1, 4, 1), 2.0), torch.tensor([9]))
    drawn = torch.cat([bank.sample().embeddings.flatten() for _ in range(200)])
    assert drawn.unique().tolist() == [1.0, 2.0]


def test_a_case_that_is_not_visited_gives_other_voxels_each_time():
    torch.manual_seed(0)
    bank = MemoryBank(["a", "b"], 1, width=1, per_class=8)
    for case, start in (("a", 0.0), ("b", 8.0)):
        bank.write(case, torch.arange(start, start + 8).reshape(1, 8, 1), torch.tensor([1000]))
    drawn = torch.cat([bank.sample().embeddings.flatten() for _ in range(300)])
    assert drawn.unique().tolist() == list(range(16))


def test_the_memory_is_filled_before_unlabelled_patches_come_in(make_trainer):
    torch.manual_seed(0)
    trainer = make_trainer()
    trainer.rampup_start_fraction = 0.5
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    assert "unlabeled" not in batch
    trainer.train_step(batch)
    assert trainer.caml.memory.counts.any()
    trainer.dataloader_train.waited_s = 5.0
    trainer.on_train_epoch_start()
    assert trainer.dataloader_train.waited_s == 0, "of this epoch"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_overflow_is_not_remembered(value: float):
    bank = MemoryBank(["a"], 2, width=3, per_class=4)
    embeddings = torch.randn(2, 4, 3)
    embeddings[1, 0, 0] = value
    bank.write("a", embeddings, torch.tensor([4, 4]))
    assert bank.counts.tolist() == [[4, 0]]
    sample = bank.sample()
    assert sample.embeddings.abs().max() < 100, "what is multiplied by it stays finite"
