"""Boxes that labelled and unlabelled patches exchange for V."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_caml.copy_paste import exchange, random_box, view_of_v

GRIDS = st.lists(st.integers(1, 5), min_size=2, max_size=3)


@given(GRIDS, st.floats(0.01, 1), st.integers(1, 3), st.integers(0, 5), st.integers(1, 4))
def test_an_exchange_is_its_own_inverse_and_the_same_at_all_resolutions(grid, share, n, unlabeled, factor):
    swap = exchange(random_box(grid, share), n)
    coarse = torch.randn(n + unlabeled, 2, *grid)
    fine = coarse
    for axis in range(2, coarse.ndim):
        fine = fine.repeat_interleave(factor, axis)
    swapped, fine_swapped = swap([coarse, fine])
    assert torch.equal(swap(swapped), coarse)
    for axis in range(2, coarse.ndim):
        swapped = swapped.repeat_interleave(factor, axis)
    assert torch.equal(swapped, fine_swapped)


@given(GRIDS, st.floats(0.01, 1))
def test_what_is_exchanged(grid, share):
    patches = torch.zeros(5, 1, *grid)
    patches[2:] = 1
    patches[4] = 2  # a third unlabelled one for two labelled ones
    result = exchange(random_box(grid, share), 2)(patches)
    sides = [min(size, max(1, round(share * size))) for size in grid]
    expected = torch.tensor(sides).prod().item()
    for labeled, unlabeled in ((0, 2), (1, 3)):
        assert result[labeled].sum() == expected
        assert torch.equal(result[labeled], 1 - result[unlabeled])
    assert torch.equal(result[4], patches[4])


def test_boxes_come_everywhere():
    starts = {tuple(first for first, _ in random_box([6, 3], 2 / 3)) for _ in range(200)}
    assert starts == {(a / 6, b / 3) for a in range(3) for b in range(2)}


def test_nothing_to_exchange():
    x = torch.randn(2, 1, 4, 4)
    scales = [[1.0, 1.0], [0.5, 0.5]]
    assert view_of_v(x.shape, 2, scales, 2 / 3)(x) is x  # labelled patches only
    assert view_of_v(x.shape, 1, scales, 0.0)(x) is x
    assert not torch.equal(view_of_v(x.shape, 1, scales, 0.5)(x), x)
    assert not torch.equal(view_of_v(x.shape, 1, None, 0.5)(x), x)
