"""One quiet style for every figure of the book, and the few kinds of figure that several
chapters draw.

Colours are those of Okabe and Ito, *Color universal design* (2008), which people with any
common form of colour blindness can tell apart, two of them darker. Lines differ in their dashes
too and points in their markers, so that a figure printed in grey still reads.

The ground of a figure is transparent, and every colour stands out from white and from black. In
a notebook, what is drawn in :data:`INK` or in black is dark in a light theme and light in a
dark one, and what is drawn in white has the colour of the page: write on a picture, which does
not change with the theme, in ``"0.1"`` or ``"0.9"``.
"""

import base64
import hashlib
import html
import io
import json
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from string import Template
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from companion.checks import checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "DASHES",
    "INK",
    "MARKERS",
    "Player",
    "band",
    "decision_regions",
    "image_grid",
    "network",
    "player",
    "set_style",
]

INK = "#757575"
"""Of text and axes: the grey that is as far from white as from black."""
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B68920", "#5C95D6", INK)
"""Blue, vermilion, green, purple, ochre, light blue, grey."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)))
"""A line style for each colour."""
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
"""A marker for each colour."""

# An SVG follows the theme of the page that shows it.
_THEMES = """
.companion-figure {color: #4D4D4D; fill: currentColor; --page: #FFFFFF}
@media (prefers-color-scheme: dark) {.companion-figure {color: #B8B8B8; --page: #121212}}
"""


def _svg(figure: "Figure") -> str:
    """A figure whose ink and white are those of the theme."""
    from IPython.core.pylabtools import print_figure

    drawn = print_figure(figure, fmt="svg", metadata={"Date": None})
    for colour, name in {
        INK: "currentColor",
        "#000000": "currentColor",
        "#ffffff": "var(--page)",
    }.items():
        drawn = drawn.replace(colour, name)
    drawn = drawn.replace("<svg ", '<svg class="companion-figure" ', 1)
    return drawn.replace('<style type="text/css">', f'<style type="text/css">{_THEMES}', 1)


def set_style() -> None:
    """Give every figure that follows the book's style; in a notebook, draw them as SVG."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLORS, linestyle=DASHES),
            "axes.edgecolor": INK,
            "axes.facecolor": "none",
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.labelcolor": INK,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 10,
            "axes.labelsize": 10,
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "figure.facecolor": "none",
            "figure.figsize": (6.4, 3.6),
            "grid.alpha": 0.25,
            "grid.color": INK,
            "grid.linewidth": 0.6,
            "image.cmap": "gray",
            "legend.fontsize": 9,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "lines.markersize": 4,
            "patch.edgecolor": INK,
            "savefig.facecolor": "none",
            "svg.hashsalt": "companion",
            "text.color": INK,
            "xtick.color": INK,
            "xtick.labelsize": 9,
            "ytick.color": INK,
            "ytick.labelsize": 9,
        }
    )
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()) is not None:
        from matplotlib.figure import Figure
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")
        shell.display_formatter.formatters["image/svg+xml"].for_type(Figure, _svg)


@checked
def band(
    ax: "Axes",
    x: Sequence[int | float] | Shaped[Tensor, " points"],
    runs: Float[Tensor, "runs points"],
    label: str | None = None,
) -> None:
    """Draw several runs as the line of their medians inside the band of their middle half.

    Args:
        ax: The axes to draw on.
        x: The horizontal position of each point.
        runs: One run a row.
        label: For the legend.
    """
    if len(x) != runs.shape[1] or len(runs) == 0:
        raise ValueError(
            "band needs at least one run, and a position for each of its points, got "
            f"{len(runs)} of {runs.shape[1]} points and {len(x)} positions"
        )
    low, middle, high = (
        runs.double()
        .cpu()
        .quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
        .numpy()
    )
    (line,) = ax.plot(x, middle, label=label)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


@checked
def decision_regions(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "points 2"],
    y: Int[Tensor, " points"],
    ax: "Axes | None" = None,
    resolution: int = 150,
) -> "Axes":
    """Colour the plane by the class that a model gives to each point, and draw labelled points
    on it.

    Args:
        model: Maps points to a score for each class.
        x: Points of the plane.
        y: The class of each point.
        ax: The axes to draw on; the current ones by default.
        resolution: Grid points along each axis.

    Returns:
        The axes.

    Raises:
        ValueError: If there are more classes than colours that can be told apart.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    if len(x) == 0 or y.min() < 0 or resolution < 2:
        raise ValueError(
            "decision_regions needs points, classes from 0 on and a resolution of at least 2, "
            f"got {len(x)} points, classes {y.tolist()} and {resolution}"
        )
    if (classes := int(y.max()) + 1) > len(COLORS):
        raise ValueError(
            f"decision_regions can tell {len(COLORS)} classes apart, got {classes}: draw fewer "
            "of them"
        )
    ax = plt.gca() if ax is None else ax
    low, high = x.min(dim=0).values - 0.3, x.max(dim=0).values + 0.3
    across, up = (
        torch.linspace(a, b, resolution, dtype=x.dtype)
        for a, b in zip(low.tolist(), high.tolist(), strict=True)
    )
    grid = torch.cartesian_prod(across, up)  # (resolution², 2)
    with torch.no_grad():
        regions = (
            model(grid.to(x.device))
            .argmax(dim=1)
            .reshape(resolution, resolution)
            .T.cpu()
            .numpy()
        )
    colours = COLORS[:classes]
    extent = (*across[[0, -1]].tolist(), *up[[0, -1]].tolist())
    shown = {"cmap": ListedColormap(colours), "vmin": 0, "vmax": max(len(colours) - 1, 1)}
    ax.imshow(
        regions,
        extent=extent,
        origin="lower",
        alpha=0.25,
        aspect="auto",
        interpolation="nearest",
        **shown,
    )
    for label, colour in enumerate(colours):
        points = x[y == label].cpu().numpy()
        ax.scatter(
            *points.T,
            s=12,
            color=colour,
            marker=MARKERS[label],
            edgecolor="white",
            linewidth=0.4,
        )
    ax.set_xlabel("$x_1$")
    ax.set_ylabel("$x_2$")
    ax.grid(visible=False)
    return ax


@checked
def image_grid(
    images: Float[Tensor, "count channels height width"],
    titles: Sequence[str] | None = None,
    columns: int = 8,
) -> "Figure":
    """Draw images side by side.

    Args:
        images: Grey (one channel) or colour (three channels), values from 0 to 1.
        titles: A line of text above each image.
        columns: Images in a row.

    Returns:
        The figure.

    Raises:
        ValueError: If titles and images differ in number.
    """
    import matplotlib.pyplot as plt

    if len(images) == 0 or images.shape[1] not in (1, 3) or columns < 1:
        raise ValueError(
            "image_grid needs images of one channel or three, and columns, got shape "
            f"{tuple(images.shape)} and {columns} columns"
        )
    if titles is not None and len(titles) != len(images):
        raise ValueError(
            f"image_grid needs one title for each image, got {len(titles)} for {len(images)}"
        )
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * 0.95, rows * (1.2 if titles else 1.0)), squeeze=False
    )
    for ax in axes.flat:
        ax.axis("off")
    for position, (ax, image) in enumerate(zip(axes.flat, images, strict=False)):
        ax.imshow(image.permute(1, 2, 0).squeeze(-1).cpu().numpy(), vmin=0, vmax=1)
        if titles:
            ax.set_title(titles[position], fontsize=7)
    return figure


@checked
def network(
    sizes: Sequence[int], labels: Sequence[str] | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw a fully connected network: a column of units for each layer, a line for each weight.

    Args:
        sizes: Units in each layer, from the input to the output.
        labels: A line of text under each layer.
        ax: The axes to draw on; the current ones by default.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    if min(sizes, default=0) < 1 or (labels and len(labels) != len(sizes)):
        raise ValueError(
            "network needs at least one unit in each layer, and as many labels as layers, got "
            f"sizes {sizes} and labels {labels}"
        )
    ax = plt.gca() if ax is None else ax
    columns = [
        [(layer, (size - 1) / 2 - unit) for unit in range(size)]
        for layer, size in enumerate(sizes)
    ]
    for left, right in pairwise(columns):
        for start in left:
            for end in right:
                ax.plot(
                    *zip(start, end, strict=True),
                    color="#858585",
                    linewidth=0.7,
                    linestyle="-",
                    zorder=1,
                )
    for layer, column in enumerate(columns):
        colour = (
            COLORS[0] if layer == 0 else COLORS[1] if layer == len(columns) - 1 else "white"
        )
        ax.scatter(
            *zip(*column, strict=True),
            s=260,
            color=colour,
            edgecolor=INK,
            linewidth=1.0,
            zorder=2,
        )
        if labels:
            ax.text(
                layer,
                -(max(sizes) - 1) / 2 - 0.9,
                labels[layer],
                ha="center",
                va="top",
                fontsize=9,
            )
    ax.set_xlim(-0.5, len(sizes) - 0.5)
    ax.set_ylim(-(max(sizes) - 1) / 2 - (1.7 if labels else 0.6), (max(sizes) - 1) / 2 + 0.6)
    ax.axis("off")
    return ax


_PLAYER = Template("""<div id="$id" style="max-width: 100%">
<img alt="$alt" src="$last" style="max-width: 100%; background: light-dark(white, black)">
<div style="display: flex; flex-wrap: wrap; gap: 1em; align-items: center">
<button type="button" style="width: 5em">Play</button>
<label style="display: flex; flex: 1; gap: 0.5em">$label
<input type="range" min="0" max="$max" value="$max" style="flex: 1"></label>
<output>$text</output>
</div>
<script>
(() => {
  const frames = $frames, texts = $texts, box = document.getElementById("$id");
  const [image, button, slider, output] =
    ["img", "button", "input", "output"].map(tag => box.querySelector(tag));
  let timer = null;
  const show = () => {
    image.src = frames[slider.value];
    output.textContent = texts[slider.value];
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  slider.addEventListener("input", () => { stop(); show(); });
  button.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (slider.value === slider.max) slider.value = 0;
    button.textContent = "Pause";
    timer = setInterval(() => {
      slider.valueAsNumber++;
      show();
      if (slider.value === slider.max) stop();
    }, 150);
    show();
  });
})();
</script>
</div>""")


class Player:
    """An animation, displayed by a notebook.

    Attributes:
        html: The player and its frames as a piece of a page.
    """

    @checked
    def __init__(self, html: str) -> None:
        self.html = html

    def _repr_html_(self) -> str:
        return self.html


@checked
def player(
    figure: "Figure",
    draw: Callable[[int], object],
    values: Sequence[int],
    alt: str,
    label: str = "step",
) -> Player:
    """An animation with a play button and a slider, which works in a notebook and on a static
    page.

    The frames are pictures inside the page itself; nothing is asked of another host. The last
    one is shown first.

    Args:
        figure: What every frame is a picture of; it is closed at the end.
        draw: Called with each value, it changes the figure to what that frame shows.
        values: One number a frame, shown beside the slider.
        alt: What the animation shows, for someone who cannot see it.
        label: What the values are.

    Returns:
        The animation.

    Raises:
        ValueError: If there are no values.
    """
    import matplotlib.pyplot as plt
    from PIL import Image

    if len(values) == 0:
        raise ValueError("an animation needs at least one value: one for each frame")
    frames = []
    for value in values:
        draw(value)
        drawn, small = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="png")
        picture = Image.open(drawn).quantize(32, Image.Quantize.FASTOCTREE)  # keeps the ground
        picture.save(small, format="png", optimize=True)
        frames.append(f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}")
    plt.close(figure)
    texts = [str(value) for value in values]
    return Player(
        _PLAYER.substitute(
            id="player-" + hashlib.sha256("".join(frames).encode()).hexdigest()[:12],
            alt=html.escape(alt),
            label=html.escape(label),
            last=frames[-1],
            max=len(frames) - 1,
            text=texts[-1],
            texts=json.dumps(texts),
            frames=json.dumps(frames),
        )
    )
