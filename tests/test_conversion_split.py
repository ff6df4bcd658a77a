"""Which cases are labelled, unlabelled and test cases: lots, lists, patients; and what a data set may be."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_caml.conversion import Case, ConversionError, Dataset, draw_split, find_images, read_list
from nnunet_caml.conversion.cases import only


def cases_named(*names: str) -> list[Case]:
    return [Case(name, [Path(f"{name}.nii.gz")], Path(f"{name}_label.nii.gz")) for name in names]


@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 2**31), st.randoms())
def test_fewer_labels_are_a_subset_of_more_and_the_test_cases_stay(labeled, test, seed, random):
    names = [f"case{number}" for number in range(30)]
    more = draw_split(cases_named(*names), labeled + 1, test=test, seed=seed)
    random.shuffle(names)  # the order in which a file system lists the cases does not matter
    fewer = draw_split(cases_named(*names), labeled, test=test, seed=seed)
    assert set(fewer.labeled) < set(more.labeled)
    assert (len(fewer.labeled), len(fewer.test)) == (labeled, test)
    assert fewer.test == more.test
    assert sorted(fewer.labeled + fewer.unlabeled + fewer.test) == sorted(names)


def test_seeds_differ_and_stay_the_same_for_ever():
    cases = cases_named(*(f"case{number}" for number in range(30)))
    assert draw_split(cases, 3, seed=0).labeled == ("case11", "case22", "case5")
    assert draw_split(cases, 3, seed=1).labeled != draw_split(cases, 3, seed=0).labeled


def patients_named(**patients: str) -> list[Case]:
    """Cases ``a1``, ``a2`` of patient ``a``, with a label unless the name ends in ``-``."""
    return [
        Case(name.rstrip("-"), [Path(name)], None if name.endswith("-") else Path(name), patient=patient)
        for patient, names in patients.items()
        for name in names.split()
    ]


@pytest.mark.parametrize("seed", range(20))
def test_patients_are_never_divided(seed):
    cases = patients_named(a="a1 a2", b="b1 b2 b3-", c="c1 c2", d="d1 d2-", e="e1-")
    split = draw_split(cases, 2, test=1, seed=seed)
    for patient in "abcde":
        roles = {split.role(case.identifier) for case in cases if case.patient == patient and case.label is not None}
        assert len(roles) <= 1
    tested = {name[0] for name in split.test}
    assert len(tested) == 1
    # no label to compare a prediction with
    assert split.left_out == tuple(name for name in ("b3", "d2") if name[0] in tested)
    assert not set(split.left_out) & {*split.test, *split.labeled, *split.unlabeled}
    assert not tested & {name[0] for name in split.labeled + split.unlabeled}  # not even without their label
    assert len({name[0] for name in split.labeled}) == 2
    more = draw_split(cases, 3, test=1, seed=seed)
    assert set(split.labeled) < set(more.labeled)
    assert more.test == split.test


def test_patients_in_lists():
    cases = patients_named(a="a1 a2", b="b1 b2 b3-", c="c1")
    assert draw_split(cases, None, labeled_cases=["b"]).labeled == ("b1", "b2")
    assert draw_split(cases, None, labeled_cases=["b1", "c1", "b2"]).labeled == ("b1", "b2", "c1")
    with pytest.raises(ConversionError, match="a part of b only, without b2"):
        draw_split(cases, None, labeled_cases=["b1"])
    with pytest.raises(ConversionError, match="has no label"):
        draw_split(cases, None, labeled_cases=["b3"])
    with pytest.raises(ConversionError, match="there are 3 patients with a label"):
        draw_split(cases, 4)
    with pytest.raises(ConversionError, match="--test 4 asks for more patients than the 3"):
        draw_split(cases, 1, test=4)


def test_only_listed_cases_or_patients():
    cases = patients_named(a="a1 a2", b="b1 b2 b3-", c="c1")
    assert [case.identifier for case in only(cases, ["c1", "b", "a2"], Path("l.txt"))] == ["a2", "b1", "b2", "b3", "c1"]
    with pytest.raises(ConversionError, match=r"l\.txt names d, which SOURCE does not have"):
        only(cases, ["a", "d"], Path("l.txt"))


@pytest.mark.parametrize("name", ["a b", "a/b", ".hidden", "", "a\n"])
def test_identifiers_that_cannot_be_file_names(name):
    with pytest.raises(ConversionError, match="cannot name a case"):
        draw_split(cases_named(name), 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Left Atrium"}, "letters, digits"),
        ({"channel_names": []}, "at least one channel"),
        ({"labels": {"background": 0, "a": 2}}, "consecutive values"),
        ({"labels": {"background": 0}}, "consecutive values"),
        ({"labels": {"Background": 0, "a": 1}}, "called background"),
        ({"label_map": {0: 0, 255: 2}}, "label_map leads to"),
    ],
)
def test_impossible_data_sets(changes, words):
    fitting = {"name": "A", "channel_names": ["CT"], "labels": {"background": 0, "a": 1}}
    with pytest.raises(ConversionError, match=words):
        Dataset(**{**fitting, **changes})


def test_find_images(tmp_path):
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz", ".c_0000.nii.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert {case.identifier: len(case.images) for case in find_images(tmp_path, 2)} == {"a": 2, "b": 2}
    assert len(list(find_images(tmp_path, 1))) == 4
    (tmp_path / "b.mha").write_bytes(b"")
    (tmp_path / "b.nrrd").write_bytes(b"")
    with pytest.raises(ConversionError, match="Two cases are called b"):
        draw_split([*find_images(tmp_path, 3), *cases_named("z")], 1)


def test_read_list(tmp_path):
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n\r\n")  # as Windows' editor writes it
    assert read_list(tmp_path / "list") == ["a", "b"]


def test_one_odd_file_does_not_rename_the_others(tmp_path):
    for name in ("a_0000.nii.gz", "b_0000.nii.gz", "stray.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConversionError, match=r"stray\.nii\.gz is not named like the other images there, such as a_0000"):
        find_images(tmp_path, 1)
    (tmp_path / "stray.nii.gz").rename(tmp_path / "b_0001.nii.gz")
    (tmp_path / "a_0001.nii.gz").write_bytes(b"")
    (tmp_path / "c_0001.nii.gz").write_bytes(b"")  # its other channel is missing
    found = {case.identifier: [path.name for path in case.images] for case in find_images(tmp_path, 2)}
    assert found == {case: [f"{case}_{channel:04d}.nii.gz" for channel in range(2)] for case in "abc"}


def test_names_that_look_like_channels(tmp_path):
    for number in (1, 4, 9):
        (tmp_path / f"amos_{number:04d}.nii.gz").write_bytes(b"")
    assert [case.identifier for case in find_images(tmp_path, 1)] == ["amos_0001", "amos_0004", "amos_0009"]
