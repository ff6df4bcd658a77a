"""A small study, and figures of its runs, made up."""

from study.commands import Workspace
from study.description import Arm, Configuration, Data, Run, Study
from study.runs import metrics_file


def study(**changes) -> Study:
    arms = (Arm("labelled only", "nnUNetTrainer"), Arm("CAML", "nnUNetTrainerCAML", {"lambda_c": 0.5}, auxiliary=True))
    values = {"name": "s", "data": Data("decathlon.py", "x"), "labeled": (4, 8), "iterations": 100, "arms": arms}
    return Study(**{**values, "configuration": Configuration("3d_fullres"), "iterations_per_epoch": 50, **changes})


def write_figures(work: Workspace, run: Run, dice: list[float]) -> None:
    """Figures made up here, of cases with one class."""
    lines = ["case,class,dice,jaccard,hd95_mm,asd_mm,hd95_voxels,asd_voxels"]
    lines += [f"c{i},organ,{d},0.5,3.0,1.0,3.0,nan" for i, d in enumerate(dice)]
    file = metrics_file(work, run)
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
