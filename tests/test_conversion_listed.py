"""Lists of cases, and folders of one h5 file a case."""

from argparse import ArgumentParser, Namespace

import pytest
from conversion_helpers import write_lists

from nnunet_caml.conversion import CaseLists, ConversionError, H5Cases


def test_order_of_the_lists_stays(tmp_path):
    write_lists(tmp_path, train="bca", test="ed")
    assert CaseLists().read(tmp_path) == [("b", "train"), ("c", "train"), ("a", "train"), ("e", "test"), ("d", "test")]


def test_either_ending(tmp_path):
    write_lists(tmp_path, train="a", test="b")
    lists = CaseLists(endings=(".txt", ".list"))
    assert lists.read(tmp_path) == [("a", "train"), ("b", "test")]
    (tmp_path / "train.txt").write_text("c", encoding="utf-8")  # the first ending counts where there are both
    assert lists.read(tmp_path) == [("c", "train"), ("b", "test")]


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        (
            CaseLists("X, example.org"),
            "test.list does not exist: put the literature's train.list and test.list there (they come with X, example.org), "
            "or say with --lists where they are.",
        ),
        (
            CaseLists(names=("train", "val", "test"), endings=(".txt", ".list"), option=False),
            "val.txt does not exist: put the literature's train.txt, val.txt and test.txt there.",
        ),
    ],
)
def test_missing_list(tmp_path, lists, sentence):
    write_lists(tmp_path, train="aa")  # a fault of another list does not hide the missing one
    with pytest.raises(ConversionError) as error:
        lists.read(tmp_path)
    assert str(error.value) == f"{tmp_path}/{sentence}"


def test_option(tmp_path):
    parser = ArgumentParser()
    CaseLists().add_option(parser, default="built in")
    assert parser.parse_args([]).lists is None
    assert parser.parse_args(["--lists", str(tmp_path)]).lists == tmp_path
    assert "folder of train.list and test.list (default: built in)" in " ".join(parser.format_help().split())


@pytest.mark.parametrize("ending", ["_norm.h5", "/image.h5"])
def test_h5_cases(tmp_path, ending):
    cases = H5Cases("data", ending, CaseLists())
    with pytest.raises(ConversionError, match=r"has no folder 'data' of \.h5 files"):
        list(cases.find(tmp_path, Namespace(lists=None)))
    (tmp_path / "data").mkdir()
    lists = write_lists(tmp_path / "lists", train="ba", test="c")
    found = list(cases.find(tmp_path, Namespace(lists=lists)))
    assert [(case.identifier, case.test) for case in found] == [("b", False), ("a", False), ("c", True)]
    assert [case.label for case in found] == [tmp_path / "data" / f"{name}{ending}" for name in "bac"]
    assert all([case.label] == case.images for case in found)
    # more cases: no list, no label, nothing hidden
    for name in ("z", "x", "._x"):
        path = tmp_path / "data" / f"{name}{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    more = list(cases.find_unlabeled(tmp_path / "data"))
    assert [(case.identifier, case.label) for case in more] == [("x", None), ("z", None)]
