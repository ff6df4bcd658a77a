"""The command ``nnunet-caml``: what goes beyond nnU-Net's own commands."""

import argparse
import io
import os
import shlex
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

from nnunet_caml import __version__, startup


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; errors of the user's data become one message and exit status 1."""
    parser = argparse.ArgumentParser(prog="nnunet-caml", description="Semi-supervised nnU-Net v2 (CAML).")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND")
    commands.required = (
        True  # an argument of its own in Python's argparse, but not in the old one that batchgenerators brings along
    )

    p = commands.add_parser("preprocess", help="preprocess the unlabelled cases of a data set that nnU-Net has planned")
    p.add_argument("-d", required=True, metavar="DATASET", help="name or id of the data set")
    p.add_argument("-c", nargs="+", default=["3d_fullres"], metavar="CONFIGURATION", help="default: 3d_fullres")
    p.add_argument("-p", "-plans_name", default="nnUNetPlans", metavar="PLANS", help="default: nnUNetPlans")
    p.add_argument("-np", type=int, default=8, metavar="N", help="processes, default: 8")
    p.add_argument(
        "-num_parts", type=int, default=1, metavar="N", help="share the cases between N runs of this command, default: 1"
    )
    p.add_argument("-part_id", type=int, default=0, metavar="I", help="which share this run does, from 0, the default")
    p.set_defaults(run=run_preprocess)

    p = commands.add_parser("export", help="write a trained model as a zip that a stock nnU-Net installs")
    p.add_argument("model_folder", type=Path, help="such as $nnUNet_results/DATASET/nnUNetTrainerCAML__nnUNetPlans__3d_fullres")
    p.add_argument("out", type=Path, help="zip file to write")
    p.add_argument("-f", nargs="+", default=None, metavar="FOLD", help="folds; default: all that are trained")
    p.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="default: checkpoint_final.pth")
    p.add_argument(
        "-p", default=None, metavar="PLANS",
        help="install under this plans name, where a stock model of the same data set and plans must not be overwritten",
    )  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="replace an existing zip")
    p.set_defaults(run=run_export)

    p = commands.add_parser("trainers", help="print the folder that nnU-Net finds our trainers in (nnUNet_extTrainer)")
    p.set_defaults(run=run_trainers)

    p = commands.add_parser("check", help="check that nnU-Net finds our trainers in this environment")
    p.set_defaults(run=run_check)

    p = commands.add_parser("demo", help="train plain nnU-Net and CAML on a synthetic data set and compare them")
    p.add_argument("-o", type=Path, default=Path("demo_output"), metavar="FOLDER", help="default: demo_output")
    p.add_argument("-device", default=None, choices=["cpu", "cuda", "mps"], help="default: the best there is")
    p.add_argument("-seed", type=int, default=2023, metavar="N", help="of the synthetic cases (default: 2023)")
    p.add_argument(
        "--narrow",
        action="store_true",
        help="label upright adults in an early phase only: unlike the other cases, which CAML cannot make up for",
    )
    p.add_argument("--longer", action="store_true", help="train plain nnU-Net once more, for as long as CAML has taken")
    p.set_defaults(run=run_demo)

    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # of torch to itself, as if something were wrong
    try:
        return options.run(options) or 0
    except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
        print(f"nnunet-caml: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. What is finished is kept.", file=sys.stderr)
        return 130


def run_preprocess(options: argparse.Namespace) -> int:
    """``nnunet-caml preprocess``."""
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id, maybe_convert_to_dataset_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_caml.checks import check_names, labeled_names
    from nnunet_caml.errors import read_json
    from nnunet_caml.preprocessing import preprocess
    from nnunet_caml.unlabeled import UnlabeledDataError, UnlabeledDataset, read_dataset_json

    if options.np < 1:
        raise ValueError(f"-np must be at least 1, got {options.np}")
    if options.num_parts < 1:
        raise ValueError(f"-num_parts must be at least 1, got {options.num_parts}")
    if not 0 <= options.part_id < options.num_parts:
        raise ValueError(f"-part_id must be from 0 to {options.num_parts - 1} (-num_parts - 1), got {options.part_id}")
    name = maybe_convert_to_dataset_name(int(options.d) if options.d.isdigit() else options.d)
    folder = Path(nnUNet_preprocessed) / name
    plans_file = folder / f"{options.p}.json"
    if not plans_file.is_file():
        command = f"nnUNetv2_plan_and_preprocess -d {convert_dataset_name_to_id(name)}"
        if options.p != "nnUNetPlans":
            command += " with the -pl PLANNER or -overwrite_plans_name that makes these plans"
        raise FileNotFoundError(f"{plans_file} does not exist: run {command} first.")
    plans = PlansManager(read_json(plans_file))
    if not (folder / "dataset.json").is_file():
        raise FileNotFoundError(
            f"{folder / 'dataset.json'} does not exist, which nnU-Net's planning puts there: run it again, or copy the file "
            f"from the raw data set."
        )
    dataset_json = read_dataset_json(folder / "dataset.json")
    problems = []
    for configuration in options.c:
        if configuration not in plans.available_configurations:
            there = ", ".join(plans.available_configurations)
            problems.append(f"{configuration}: the plans {options.p} have no such configuration, but {there}.")
            continue
        dataset = UnlabeledDataset.create(plans, configuration, dataset_json)
        cases = dataset.raw_cases()
        if not cases:
            raise ValueError(
                f"There are no raw unlabelled cases for {plans.dataset_name}: looked for images in imagesUn/ and for an entry "
                f'"unlabeled" of dataset.json in {dataset.raw_folder or "$nnUNet_raw, which is not set"}.{dataset.misnamed()}'
            )
        check_names(cases, labeled_names(dataset))
        try:
            done = preprocess(dataset, options.np, options.part_id, options.num_parts)
        except UnlabeledDataError as error:  # of some cases, which are no obstacle to the next configuration
            problems.append(f"{configuration}: {error}")
            continue
        print(f"{configuration}: {done} unlabelled cases preprocessed, {len(dataset.done_cases())} there in {dataset.folder}")
    if problems:
        raise UnlabeledDataError("\n".join(problems))
    return 0


def run_export(options: argparse.Namespace) -> int:
    """``nnunet-caml export``."""
    from nnunet_caml.export import export

    installed = export(options.model_folder, options.out, options.f, options.chk, options.p, options.overwrite)
    file = shlex.quote(str(options.out))
    print(f"Wrote {options.out}. A stock nnU-Net installs it with\n  nnUNetv2_install_pretrained_model_from_zip {file}")
    print(f"as {installed}, over what is there under that name, and predicts with\n  nnUNetv2_predict " + installed.command)
    if installed.first_stage is not None:
        print(
            f"FIRST being the folder of what {installed.first_stage} predicts of IN: this is the second stage of a cascade. "
            f"Where {installed.first_stage} is not installed, export that model, too."
        )
    return 0


def run_trainers(options: argparse.Namespace) -> int:
    """``nnunet-caml trainers``."""
    print(startup.DISCOVERY_FOLDER)
    return 0


def run_check(options: argparse.Namespace) -> int:
    """``nnunet-caml check``: the trainer look-up itself, with its usual obstacles explained."""
    # torch's about what torchvision still uses looks like a fault of the installation
    warnings.simplefilter("ignore", FutureWarning)
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"torchvision cannot be imported ({error}). nnU-Net imports it when it looks up any trainer. torch and "
            f"torchvision must come from the same source and fit each other: reinstall both together with pip."
        ) from None
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_caml import variants
    from nnunet_caml.trainer import nnUNetTrainerCAML

    # this process has the folder since it imported startup; nnU-Net's commands have it if Python reads our start-up file
    show = [sys.executable, "-c", f"import os; print(os.environ.get({startup.VARIABLE!r}, ''))"]
    environment = {**os.environ, startup.VARIABLE: startup.GIVEN}
    folders = subprocess.run(show, env=environment, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    if startup.DISCOVERY_FOLDER not in folders.split(os.pathsep):
        value = os.pathsep.join([*filter(None, [folders]), startup.DISCOVERY_FOLDER])
        raise RuntimeError(
            f"Python does not read the start-up file nnunet_caml.pth here, as with pip install --target or a folder in "
            f"PYTHONPATH. Set the variable yourself: export {startup.VARIABLE}={value}"
        )
    if missing := [folder for folder in os.environ.get(startup.VARIABLE, "").split(os.pathsep) if not Path(folder).is_dir()]:
        raise RuntimeError(
            f"{startup.VARIABLE} names {', '.join(missing)}, which is no folder, so nnU-Net finds no trainer there. Correct "
            f"it: {startup.VARIABLE}={os.environ[startup.VARIABLE]}"
        )
    with redirect_stdout(io.StringIO()) as search:
        try:
            found = recursive_find_trainer_class_by_name("nnUNetTrainerCAML")
        except Exception as error:  # whatever a module of the user's trainers raises while it is imported
            raise RuntimeError(
                f"nnU-Net's search for trainers ends with {type(error).__name__}: {error}. It imports every module in the "
                f"folders of {startup.VARIABLE}={folders} and got as far as this:\n{search.getvalue()}"
            ) from error
    if found is not nnUNetTrainerCAML:
        raise RuntimeError(
            f"nnU-Net finds another class named nnUNetTrainerCAML, in module {found.__module__}. Rename or remove it. "
            f"{startup.VARIABLE}={folders}\n{search.getvalue()}"
        )
    print(f"nnunet-caml {__version__}: nnU-Net finds nnUNetTrainerCAML (torchvision {torchvision.__version__}).")
    print(f"Its variants: {', '.join(variants.__all__)}")
    return 0


def run_demo(options: argparse.Namespace) -> int:
    """``nnunet-caml demo``."""
    from nnunet_caml.demo import run

    return run(options.o, options.device, options.seed, options.narrow, options.longer)


if __name__ == "__main__":
    sys.exit(main())
