"""Synthetic scans of a small body with two organs, and their segmentation.

A case is drawn in two steps. The *anatomy*: ellipsoids with smoothly perturbed surfaces for the body and its organs, a
spine and two vessels, all of them turned, scaled and bent together by one smooth deformation. The *scan*: every tissue has a
brightness that changes with the phase of a contrast agent; then come texture, blur, a bias field, gamma and noise.

Cases come from all there is (:data:`EVERYONE`), or the labelled ones from a narrow part of it (:data:`NARROW`): adult size,
upright, early phase, good image quality. A network that sees these only knows neither small bodies nor late phases, where
the organs fade and the spleen, which is not to be segmented here, becomes brighter than the liver.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

__all__ = ["EVERYONE", "LABELS", "NARROW", "Population", "SyntheticCase", "draw_case"]

LABELS = {"background": 0, "liver": 1, "kidney": 2}

Array = NDArray[np.floating]
Range = tuple[float, float]


@dataclass(frozen=True)
class Population:
    """From where the properties of a case are drawn, each uniformly from an interval.

    Attributes:
        phase: Of the contrast agent, 0 early to 1 late.
        scale: Size of the body.
        organ_scale: Size of each organ relative to the body, drawn for each by itself.
        turn_deg: Rotation about each axis.
        bend_voxels: Standard deviation of the smooth deformation.
        blur_voxels: Standard deviation of the point spread function.
        noise: Standard deviation, where 1 is about the brightness of bone.
        bias: Standard deviation of the logarithm of the bias field.
        gamma: Exponent of the brightness curve.
    """

    phase: Range
    scale: Range
    organ_scale: Range
    turn_deg: Range
    bend_voxels: Range
    blur_voxels: Range
    noise: Range
    bias: Range
    gamma: Range


#: a part of :data:`EVERYONE`
NARROW = Population(
    phase=(0.0, 0.2),
    scale=(0.97, 1.03),
    organ_scale=(0.95, 1.1),
    turn_deg=(-4, 4),
    bend_voxels=(0.4, 0.8),
    blur_voxels=(0.4, 0.6),
    noise=(0.03, 0.04),
    bias=(0.02, 0.05),
    gamma=(0.95, 1.05),
)

#: where cases come from
EVERYONE = Population(
    phase=(0.0, 1.0),
    scale=(0.82, 1.08),
    organ_scale=(0.8, 1.15),
    turn_deg=(-20, 20),
    bend_voxels=(0.4, 1.6),
    blur_voxels=(0.4, 1.0),
    noise=(0.03, 0.10),
    bias=(0.02, 0.15),
    gamma=(0.8, 1.25),
)


@dataclass(frozen=True)
class Tissue:
    """A part of the body: an ellipsoid in the body's frame, from -1 to 1 along each axis ``(z, y, x)``.

    Attributes:
        center: Where it is.
        radii: Half axes; ``inf`` for a tube.
        brightness: At phase 0 and at phase 1.
        label: Its value in the segmentation.
        wander: Standard deviation of the centre over the cases.
        roughness: How much its surface is perturbed.
    """

    center: tuple[float, float, float]
    radii: tuple[float, float, float]
    brightness: tuple[float, float]
    label: int = 0
    wander: float = 0.0
    roughness: float = 0.0


#: Later ones cover earlier ones. The first is the skin with its fat, the second all that is inside.
TISSUES = (
    Tissue((0, 0, 0), (1.15, 0.80, 0.95), (0.25, 0.25), roughness=0.05),
    Tissue((0, 0, 0), (1.12, 0.72, 0.87), (0.45, 0.45), roughness=0.05),
    Tissue((0.05, -0.28, 0.38), (0.26, 0.20, 0.22), (0.10, 0.30), wander=0.05, roughness=0.20),  # stomach with air
    Tissue((-0.10, -0.02, -0.42), (0.48, 0.42, 0.36), (0.72, 0.62), LABELS["liver"], wander=0.03, roughness=0.25),
    Tissue((-0.25, 0.08, 0.58), (0.28, 0.24, 0.17), (0.58, 0.70), wander=0.04, roughness=0.15),  # spleen
    Tissue((0.40, 0.20, 0.42), (0.46, 0.29, 0.27), (0.95, 0.80), LABELS["kidney"], wander=0.04, roughness=0.15),
    Tissue((0.55, -0.22, -0.12), (0.16, 0.22, 0.40), (0.52, 0.58), wander=0.06, roughness=0.35),  # bowel
    Tissue((0, 0.48, 0), (np.inf, 0.13, 0.13), (1.3, 1.3), roughness=0.10),  # spine
    Tissue((0, 0.24, 0.08), (np.inf, 0.07, 0.07), (0.75, 0.65)),  # aorta
    Tissue((0, 0.26, -0.10), (np.inf, 0.06, 0.08), (0.55, 0.72)),  # vena cava
)


@dataclass(frozen=True)
class SyntheticCase:
    """A scan and its segmentation.

    Attributes:
        image: ``(Z, Y, X)``, float32, arbitrary units.
        label: ``(Z, Y, X)``, uint8, values of :data:`LABELS`.
        properties: What was drawn from the :class:`Population`.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    properties: dict[str, float]


def draw_case(rng: np.random.Generator, population: Population, size: int = 32) -> SyntheticCase:
    """Draws a case.

    Args:
        rng: Source of all randomness: the same state gives the same case.
        population: Where the case comes from.
        size: Mean number of voxels per axis, of 1 mm each; the axes differ by up to 10 %.
    """
    properties = {name: float(rng.uniform(*interval)) for name, interval in vars(population).items()}
    shape = tuple(int(n) for n in rng.integers(round(0.9 * size), round(1.1 * size) + 1, 3))
    label, brightness = _anatomy(rng, population, properties, shape, size)
    return SyntheticCase(_scan(rng, properties, brightness), label, properties)


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], sigma_voxels: float) -> Array:
    """Smooth noise with mean 0 and standard deviation 1."""
    field = gaussian_filter(rng.standard_normal(shape), sigma_voxels, mode="reflect")
    return (field - field.mean()) / field.std()


def _anatomy(
    rng: np.random.Generator, population: Population, properties: dict[str, float], shape: tuple[int, ...], size: int
) -> tuple[NDArray[np.uint8], Array]:
    """Segmentation and brightness per voxel."""
    angles = rng.uniform(*population.turn_deg, 3)
    turn = Rotation.from_euler("zyx", angles, degrees=True).as_matrix()
    half = 0.5 * size * 0.95 * properties["scale"]
    positions = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))
    bend = np.stack([_smooth_field(rng, shape, 0.2 * size) for _ in shape]) * properties["bend_voxels"]
    frame = np.tensordot(turn, positions + bend, 1) / half

    label = np.zeros(shape, np.uint8)
    brightness = np.full(shape, 0.02)
    within = np.ones(shape, bool)
    for number, tissue in enumerate(TISSUES):
        # tubes and the body itself keep their size
        scale = 1.0 if np.isinf(tissue.radii[0]) or not tissue.wander else rng.uniform(*population.organ_scale)
        center = np.asarray(tissue.center) + tissue.wander * rng.standard_normal(3)
        radii = scale * np.asarray(tissue.radii)
        surface = 1 + tissue.roughness * _smooth_field(rng, shape, 0.09 * size)
        offset = (frame - center[:, None, None, None]) / radii[:, None, None, None]
        inside = within & (np.sqrt((offset**2).sum(0)) < surface)
        if number < 2:  # nothing sticks out of the skin, and only the skin out of what is inside
            within = inside
        early, late = tissue.brightness
        brightness[inside] = early + properties["phase"] * (late - early) + 0.02 * rng.standard_normal()
        label[inside] = tissue.label
    return label, brightness


def _scan(rng: np.random.Generator, properties: dict[str, float], brightness: Array) -> NDArray[np.float32]:
    """The image that a scanner makes of a map of brightness."""
    shape = brightness.shape
    textured = brightness * (1 + 0.05 * _smooth_field(rng, shape, 1.2))
    blurred = gaussian_filter(textured, properties["blur_voxels"])
    biased = blurred * np.exp(properties["bias"] * _smooth_field(rng, shape, 0.3 * shape[0]))
    curved = np.clip(biased, 0, None) ** properties["gamma"]
    noise = rng.standard_normal((2, *shape)) * properties["noise"]
    # magnitude of a complex signal, as in MR: noise never makes it negative
    magnitude = np.hypot(curved + noise[0], noise[1])
    return (1000 * magnitude).astype(np.float32)
