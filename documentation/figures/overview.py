"""Draws overview.png: how a training step of CAML works. Run: python documentation/figures/overview.py"""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

V, A, DATA, LOSS, GREY = "#2b6cb0", "#c05621", "#edf2f7", "#fefcbf", "#4a5568"


def box(ax, x, y, w, h, text, face, edge=GREY, size=10, color="black"):
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.02,rounding_size=0.08", fc=face, ec=edge, lw=1.4))
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", size=size, color=color)


def network(ax, x, y, color, name, upsampling):
    """An encoder and a decoder as two trapezia that meet at the bottleneck."""
    ax.add_patch(Polygon([(x, y), (x, y + 1.6), (x + 1.3, y + 1.15), (x + 1.3, y + 0.45)], fc=color, ec=color, alpha=0.85))
    ax.add_patch(
        Polygon([(x + 1.5, y + 0.45), (x + 1.5, y + 1.15), (x + 2.8, y + 1.6), (x + 2.8, y)], fc=color, ec=color, alpha=0.85)
    )
    ax.text(x + 1.4, y + 1.82, name, ha="center", size=11, weight="bold", color=color)
    ax.text(x + 0.58, y + 0.8, "encoder", ha="center", va="center", color="white", size=9.5)
    ax.text(x + 2.2, y + 0.8, f"decoder\n{upsampling}", ha="center", va="center", color="white", size=8.5)


def arrow(ax, start, end, color=GREY, both=False, curve=0.0, style="-"):
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="<|-|>" if both else "-|>", mutation_scale=13, color=color, lw=1.5,
            connectionstyle=f"arc3,rad={curve}", ls=style, shrinkA=2, shrinkB=2,
        )
    )  # fmt: skip


def main() -> None:
    figure, ax = plt.subplots(figsize=(13, 6.4), layout="constrained")
    ax.set(xlim=(-0.1, 13.1), ylim=(-0.2, 6.4))
    ax.axis("off")
    box(ax, 0, 3.55, 1.7, 0.9, "labelled\npatches", DATA)
    box(ax, 0, 2.25, 1.7, 0.9, "unlabelled\npatches", DATA)
    network(ax, 2.7, 4.0, V, "V, the network of nnU-Net's plans", "transposed conv.")
    network(ax, 2.7, 0.9, A, "A, auxiliary (training only)", "interpolation")
    for y in (4.0, 2.7):
        for target in (4.8, 1.7):
            arrow(ax, (1.75, y), (2.65, target))
    box(ax, 2.35, -0.1, 1.95, 0.75, "CMA: every sample\nattends to the others", "white", A, 9, A)
    arrow(ax, (3.32, 0.68), (3.55, 1.2), A)
    box(ax, 7.0, 4.35, 2.1, 0.9, "predictions", "white", V, color=V)
    box(ax, 7.0, 1.25, 2.1, 0.9, "predictions", "white", A, color=A)
    arrow(ax, (5.55, 4.8), (6.95, 4.8), V)
    arrow(ax, (5.55, 1.7), (6.95, 1.7), A)
    box(ax, 6.85, 2.88, 2.4, 0.66, "mutual consistency $L_c$: each\nlearns the labels of the other", LOSS, size=9)
    arrow(ax, (8.05, 4.3), (8.05, 3.58), both=True)
    arrow(ax, (8.05, 2.2), (8.05, 2.84), both=True)
    box(ax, 6.85, 5.6, 2.4, 0.7, "$L_s$: nnU-Net's loss\non labelled patches", LOSS, size=9)
    arrow(ax, (8.05, 5.3), (8.05, 5.56))
    box(ax, 6.85, 0.0, 2.4, 0.7, "$L_s$: nnU-Net's loss\non labelled patches", LOSS, size=9)
    arrow(ax, (8.05, 1.2), (8.05, 0.74))
    box(
        ax,
        10.0,
        2.75,
        3.0,
        0.95,
        "OCC, $L_o$: both describe an\nunlabelled voxel by the same\nsimilarities to the memory",
        LOSS,
        size=9,
    )
    box(ax, 10.35, 4.95, 2.3, 0.95, "memory of labelled\nembeddings,\n256 a class and step", "white", size=9)
    arrow(ax, (11.5, 4.9), (11.5, 3.75))
    arrow(ax, (5.5, 5.42), (10.3, 5.42), GREY, style="--")
    ax.text(6.15, 5.55, "voxels that\nboth get right", size=8.5, color=GREY, ha="center")
    arrow(ax, (5.5, 4.2), (9.95, 3.55), V)
    arrow(ax, (5.5, 2.3), (9.95, 2.9), A)
    ax.text(11.5, 2.35, "features, through projection\nand prediction heads", size=8.5, color=GREY, ha="center")
    box(ax, 9.9, 0.55, 3.1, 1.15, "What is saved and predicts:\nV alone, a stock nnU-Net checkpoint", "#e6fffa", "#2c7a7b", 9.5)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
