"""The command line that all converters share."""

import os
import shlex
import signal
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_caml.conversion.cases import Case, Dataset, draw_split, find_images, only, read_list
from nnunet_caml.conversion.errors import ConversionError
from nnunet_caml.conversion.writer import convert, target_folder

Finder = Callable[[Path, Namespace], Iterable[Case]]
VARIABLE = "nnUNet_raw"
UNRECORDED = {"--overwrite": 0, "--preview": 0, "-np": 1}  # options and their values that do not change the data


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _count(text: str) -> int | str:
    return text if text == "all" else _positive(text)


def argument_parser(
    description: str | None = None,
    *,
    default_labeled: int | str | None = None,
    labeled_help: str = "",
    draws_test: bool = True,
) -> ArgumentParser:
    """Builds the parser of a converter.

    Args:
        description: What the converter reads; its documentation string.
        default_labeled: For ``--labeled``, a number or ``"all"``; without it, the user has to say.
        labeled_help: What to say about ``--labeled``.
        draws_test: Whether test cases can be held out at random (``--test``).
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    # not an argument of the old argparse that batchgenerators brings along, which goes first with pip install --target
    parser.allow_abbrev = False
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder of the data set as it was downloaded")
    parser.add_argument("--dataset-id", type=_positive, required=True, metavar="ID", help="number in nnU-Net, 1 to 999")
    parser.add_argument("--name", help="name in nnU-Net instead of the converter's own")
    which = parser.add_mutually_exclusive_group(required=default_labeled is None)
    labeled_help = labeled_help or "how many cases keep their label, drawn at random, or 'all'"
    which.add_argument("--labeled", type=_count, default=default_labeled, metavar="N", help=labeled_help)
    which.add_argument("--labeled-cases", type=Path, metavar="LIST", help="file of the cases that do, one a line")
    if draws_test:
        parser.add_argument(
            "--test",
            type=_positive,
            default=0,
            metavar="N",
            help="hold out N cases with a label for testing, drawn before the labelled ones",
        )
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--only", type=Path, metavar="LIST", help="file of the cases of SOURCE to take, one a line; no others")
    parser.add_argument("--unlabeled-from", type=Path, metavar="DIR", help="folder of more cases without a label")
    parser.add_argument("--link", action="store_true", help="link files that need no conversion, do not copy")
    parser.add_argument("--overwrite", action="store_true", help="replace the data set if it exists")
    parser.add_argument("--skip-broken", action="store_true", help="leave broken cases out and list them at the end")
    parser.add_argument("--preview", action="store_true", help="draw a few cases into preview.png of the data set")
    parser.add_argument("-np", type=_positive, default=8, metavar="N", help="processes that convert cases (default: 8)")
    return parser


def main(
    find: Finder,
    dataset: Dataset | Callable[[Path, Namespace], Dataset],
    parser: ArgumentParser | None = None,
    *,
    find_unlabeled: Callable[[Path], Iterable[Case]] | None = None,
) -> None:
    """Runs a converter from the command line.

    Errors are printed as one sentence, with exit status 1.

    Args:
        find: Finds the cases, given the source folder and the command's options.
        dataset: What the cases have in common, or a function like ``find`` that says it.
        parser: From :func:`argument_parser`, perhaps with further arguments.
        find_unlabeled: Finds the cases in the folder of ``--unlabeled-from``; :func:`find_images` if not given.
    """
    options = (parser or argument_parser()).parse_args()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was half written gets removed
    try:
        print(_convert(find, dataset, options, find_unlabeled))
    except ConversionError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # a folder without rights, on either side
        what = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        print(f"{Path(sys.argv[0]).name}: {what}.", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted. Nothing is half written.", file=sys.stderr)
        sys.exit(130)
    finally:
        # workers forked later would inherit it, and a pool that terminates them could wait for ever
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _convert(
    find: Finder,
    dataset: Dataset | Callable[[Path, Namespace], Dataset],
    options: Namespace,
    find_unlabeled: Callable[[Path], Iterable[Case]] | None,
) -> str:
    """Does what the options say and returns the summary."""
    raw = raw_folder()
    if not options.source.is_dir():
        raise ConversionError(f"{options.source} is no folder: SOURCE should be the folder of the downloaded data set.")
    if not isinstance(dataset, Dataset):
        dataset = dataset(options.source, options)
    if options.name:
        dataset = replace(dataset, name=options.name)
    target_folder(raw, options.dataset_id, dataset.name, options.overwrite)  # complain before a long search
    cases = list(find(options.source, options))
    if options.only:
        cases = only(cases, read_list(options.only), options.only)
    if options.unlabeled_from is not None:
        if find_unlabeled is not None:
            more = list(find_unlabeled(options.unlabeled_from))
        else:
            more = list(find_images(options.unlabeled_from, len(dataset.channel_names)))
        if not more:
            raise ConversionError(f"{options.unlabeled_from} holds no case: it should have the same layout as SOURCE.")
        cases += [replace(case, label=None, test=False) for case in more]
    split = draw_split(
        cases,
        None if options.labeled == "all" else options.labeled,
        labeled_cases=read_list(options.labeled_cases) if options.labeled_cases else None,
        test=getattr(options, "test", 0),
        seed=options.seed,
        ordered=dataset.ordered,
    )
    summary = convert(
        dataset,
        cases,
        split,
        raw,
        options.dataset_id,
        link=options.link,
        overwrite=options.overwrite,
        skip_broken=options.skip_broken,
        preview=options.preview,
        processes=options.np,
        source=options.source,
        command=command_line(sys.argv),
    )
    return summary.text()


def raw_folder() -> Path:
    """nnU-Net's folder of raw data sets.

    Raises:
        ConversionError: The variable ``nnUNet_raw`` is not set.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise ConversionError(f"The variable {VARIABLE} is not set: export {VARIABLE}=FOLDER, where data sets go.")
    return Path(folder)


def command_line(arguments: Sequence[str]) -> str:
    """The command for ``split.json``: without the machine's folders, and without what does not change the data."""
    kept, skip = [], 0
    for argument in arguments:
        if skip:
            skip -= 1
        elif argument in UNRECORDED:
            skip = UNRECORDED[argument]
        elif not argument.startswith("-np"):  # -np4
            option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
            kept.append(f"{option}{equals}{Path(value).name if value else ''}")
    return shlex.join(kept)
