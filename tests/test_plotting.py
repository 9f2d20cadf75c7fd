import base64
import colorsys
import io
import json
import re

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from companion import plotting


def test_the_style_gives_every_line_its_own_colour_and_dashes(figure):
    plotting.set_style()
    ax = figure.add_subplot()
    lines = [ax.plot([0, 1])[0] for _ in plotting.COLORS]
    assert [line.get_color() for line in lines] == list(plotting.COLORS)
    assert len({str(line._dash_pattern) for line in lines}) == len(plotting.COLORS)


def luminance(colour):
    """The relative luminance of the Web Content Accessibility Guidelines."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in to_rgb(colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(*colours):
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def test_lines_stand_out_from_a_light_and_from_a_dark_page_and_text_more_so():
    assert contrast("white", "black") == pytest.approx(21)
    # white, the site's and JupyterLab's dark grounds, and that of a player in a dark theme
    for ground in ("#FFFFFF", "#121212", "#111111", "#000000"):
        assert min(contrast(colour, ground) for colour in plotting.COLORS) >= 3
    assert min(contrast(plotting.INK, "white"), contrast(plotting.INK, "black")) >= 4.5
    light, white, dark, page = re.findall("#[0-9A-F]{6}", plotting._THEMES)
    assert white == "#FFFFFF"
    for ink, ground in ((light, white), (dark, page)):
        assert contrast(ink, ground) >= 7


def test_colours_differ_for_every_common_form_of_colour_blindness():
    # Viénot, Brettel and Mollon (1999): linear RGB as a protanope and a deuteranope see it.
    simulate = {
        "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }
    linear = (
        torch.tensor([to_rgb(colour) for colour in plotting.COLORS], dtype=torch.float64) ** 2.2
    )
    for matrix in simulate.values():
        seen = (linear @ torch.tensor(matrix, dtype=torch.float64).T).clamp(0) ** (1 / 2.2)
        assert torch.pdist(seen).min() > 0.09
    assert len({colorsys.rgb_to_hls(*to_rgb(colour))[0] for colour in plotting.COLORS}) == len(
        plotting.COLORS
    )


def test_in_a_notebook_figures_are_svg(figure):
    shell = InteractiveShell.instance()
    try:
        plotting.set_style()
        drawn = {
            kind
            for kind, formatter in shell.display_formatter.formatters.items()
            if Figure in formatter
        }
        ax = figure.add_subplot(title="a title")
        ax.plot([0, 1], "k", label="black")
        ax.plot([1, 0], "C0o", markeredgecolor="white")
        ax.imshow([[0, 1]], cmap="gray")
        page = shell.display_formatter.formatters["image/svg+xml"](figure)
    finally:
        InteractiveShell.clear_instance()
    assert "image/svg+xml" in drawn
    assert "image/png" not in drawn
    assert page.count("<svg ") == page.count('<svg class="companion-figure" ') == 1
    colours = set(
        re.findall(r"(?:fill|stroke): ?([^;\"]+)", page.replace(plotting._THEMES, ""))
    )
    assert colours == {"none", "currentColor", "var(--page)", plotting.COLORS[0].lower()}
    assert page.count(plotting._THEMES) == 1
    assert "<dc:date>" not in page


def test_a_band_is_the_median_inside_the_quartiles(figure):
    ax = figure.add_subplot()
    runs = torch.tensor([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0], [3.0, 13.0], [4.0, 14.0]])
    plotting.band(ax, [0, 1], runs, label="five runs")
    assert ax.lines[0].get_ydata().tolist() == [2.0, 12.0]
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1.0, 13.0)
    assert ax.lines[0].get_label() == "five runs"


def test_decision_regions_colour_the_plane_as_the_model_decides(figure):
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.8, -0.5]])
    y = torch.tensor([0, 1, 1])
    up = plotting.decision_regions(
        lambda points: torch.stack([-points[:, 1], points[:, 1]], dim=1), x, y
    ).images[0]
    assert (up.get_array()[:70] == 0).all()
    assert (up.get_array()[-70:] == 1).all()
    # the first row of the array, with the smallest x₂, is at the bottom
    assert up.origin == "lower"
    plt.clf()
    ax = plotting.decision_regions(
        lambda points: torch.stack([-points[:, 0], points[:, 0]], dim=1), x, y
    )
    regions = ax.images[0].get_array()
    assert regions.shape == (150, 150)
    left, right, bottom, top = ax.images[0].get_extent()
    boundary = left + (right - left) * (regions[0] == 0).sum() / 150
    assert abs(boundary) < 0.02
    assert (bottom, top) == pytest.approx((-0.8, 0.8))
    assert [len(points.get_offsets()) for points in ax.collections] == [1, 2]


def test_more_classes_than_colours_are_refused(figure):
    with pytest.raises(ValueError, match="can tell 7 classes apart, got 10: draw fewer"):
        plotting.decision_regions(lambda points: points, torch.rand(10, 2), torch.arange(10))


def test_titles_that_do_not_match_the_images_are_refused(figure):
    with pytest.raises(ValueError, match="one title for each image, got 1 for 2"):
        plotting.image_grid(torch.rand(2, 1, 4, 4), titles=["one"])


def test_an_image_grid_shows_each_image_once_with_its_title(figure):
    images = torch.rand(5, 1, 4, 6)
    shown = plotting.image_grid(images, titles=list("abcde"), columns=3)
    assert len(shown.axes) == 6
    assert [len(ax.images) for ax in shown.axes] == [1, 1, 1, 1, 1, 0]
    assert [ax.get_title() for ax in shown.axes] == ["a", "b", "c", "d", "e", ""]
    torch.testing.assert_close(
        torch.from_numpy(shown.axes[4].images[0].get_array().filled()), images[4, 0]
    )
    assert plotting.image_grid(torch.rand(2, 3, 4, 6)).axes[0].images[0].get_array().shape == (
        4,
        6,
        3,
    )


def test_a_network_has_a_circle_for_each_unit_and_a_line_for_each_weight(figure):
    ax = plotting.network([2, 4, 3], labels=["input", "hidden", "output"])
    assert len(ax.lines) == 2 * 4 + 4 * 3
    assert sum(len(column.get_offsets()) for column in ax.collections) == 2 + 4 + 3
    assert [text.get_text() for text in ax.texts] == ["input", "hidden", "output"]
    assert len(plotting.network([1, 1], ax=plt.figure().add_subplot()).texts) == 0


def test_a_player_holds_a_picture_for_each_value_and_asks_nothing_of_another_host(figure):
    figure.set_facecolor("none")
    (line,) = figure.add_subplot().plot([0, 1], [0, 0])
    page = plotting.player(
        figure, lambda step: line.set_ydata([0, step]), [0, 3, 7], 'a line & its "end"', "step"
    )._repr_html_()
    frames = json.loads(re.search(r"frames = (\[.*?\]),", page).group(1))
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(frame.split(",")[1]))) for frame in frames
    ]
    assert len({picture.tobytes() for picture in pictures}) == 3
    assert {picture.size for picture in pictures} == {(640, 480)}
    assert {picture.convert("RGBA").getpixel((0, 0))[3] for picture in pictures} == {0}
    assert "background: light-dark(white, black)" in page
    assert '["0", "3", "7"]' in page
    assert 'max="2" value="2"' in page
    assert f'src="{frames[-1]}"' in page
    assert 'alt="a line &amp; its &quot;end&quot;"' in page
    assert re.search(r'<label[^>]*>step\n<input type="range"', page)  # a slider with a name
    assert not re.search(r"https?:|//", re.sub(r'"data:[^"]*"', "", page))
    assert not plt.fignum_exists(figure.number)


def test_the_few_colours_of_a_small_frame_are_still_those_of_the_book(figure):
    plotting.set_style()
    ax = figure.add_subplot()
    for height in range(len(plotting.COLORS)):
        ax.plot([0, 1], [height, height + 1], linewidth=1)
    page = plotting.player(figure, lambda step: None, [1], "seven lines").html
    frame = re.search(r'src="data:image/png;base64,([^"]*)"', page).group(1)
    picture = Image.open(io.BytesIO(base64.b64decode(frame)))
    assert picture.mode == "P"
    shown = (
        torch.tensor(
            [colour for _, colour in picture.convert("RGBA").convert("RGB").getcolors()],
            dtype=torch.float64,
        )
        / 255
    )
    wanted = torch.tensor([to_rgb(colour) for colour in plotting.COLORS], dtype=torch.float64)
    assert torch.cdist(wanted, shown).amin(dim=1).max() < 0.05


def test_players_of_different_frames_do_not_meddle_with_each_other(figure):
    (line,) = figure.add_subplot().plot([0, 1], [0, 0])
    pages = [
        plotting.player(figure, lambda step: line.set_ydata([0, step]), [last], "a line").html
        for last in (1, 2)
    ]
    names = [re.findall(r"player-\w{12}", page) for page in pages]
    assert [len(set(name)) for name in names] == [1, 1]
    assert names[0][0] != names[1][0]


def test_a_player_without_frames_says_what_it_lacks(figure):
    with pytest.raises(ValueError, match="at least one value: one for each frame"):
        plotting.player(figure, print, [], "nothing")


def test_decision_regions_stand_behind_points_that_keep_their_places_and_colours(figure):
    plotting.set_style()
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.8, -0.5]])
    ax = plotting.decision_regions(
        lambda p: torch.stack([-p[:, 0], p[:, 0], p[:, 0] - 9], dim=1),
        x,
        torch.tensor([0, 1, 2]),
    )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$x_1$", "$x_2$")
    assert ax.images[0].get_extent() == pytest.approx((-1.3, 1.3, -0.8, 0.8))
    assert ax.images[0].get_alpha() == 0.25
    assert ax.images[0].get_clim() == (0, 2)
    assert ax.images[0].get_interpolation() == "nearest"
    assert ax.get_aspect() == "auto"
    assert not any(line.get_visible() for line in ax.get_xgridlines())
    shown = ax.images[0].cmap([0, 1, 2]).tolist()
    for label, points in enumerate(ax.collections):
        assert points.get_offsets().tolist() == [pytest.approx(x[label].tolist())]
        colour = to_rgb(plotting.COLORS[label])
        assert tuple(points.get_facecolor()[0][:3]) == pytest.approx(colour)
        assert shown[label][:3] == pytest.approx(list(colour))
        assert points.get_sizes().tolist() == [12]
    markers = {points.get_paths()[0].vertices.tobytes() for points in ax.collections}
    assert len(markers) == 3


def test_a_band_is_pale_and_of_its_line_s_colour(figure):
    ax = figure.add_subplot()
    plotting.band(ax, [1, 3], torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    (band,), (line,) = ax.collections, ax.lines
    assert tuple(band.get_facecolor()[0]) == pytest.approx((*to_rgb(line.get_color()), 0.2))
    assert line.get_xdata().tolist() == [1, 3]
    assert sorted(set(band.get_paths()[0].vertices[:, 0])) == [1, 3]
    assert band.get_linewidth().tolist() == [0]


def test_images_are_shown_in_full_range_without_axes_eight_in_a_row(figure):
    shown = plotting.image_grid(torch.full((9, 1, 4, 6), 0.5), titles=list("abcdefghi"))
    assert len(shown.axes) == 16
    assert shown.get_size_inches().tolist() == pytest.approx([8 * 0.95, 2 * 1.2])
    assert shown.axes[0].images[0].get_clim() == (0, 1)
    assert not any(ax.axison for ax in shown.axes)
    assert {ax.title.get_fontsize() for ax in shown.axes[:9]} == {7}
    bare = plotting.image_grid(torch.rand(2, 1, 4, 6), columns=2)
    assert bare.get_size_inches().tolist() == pytest.approx([2 * 0.95, 1.0])


def test_a_network_s_columns_are_centred_coloured_by_their_part_and_labelled_below(figure):
    ax = plotting.network([2, 4, 3], labels=["input", "hidden", "output"])
    places = [column.get_offsets().tolist() for column in ax.collections]
    assert places[0] == [[0, 0.5], [0, -0.5]]
    assert places[1] == [[1, 1.5], [1, 0.5], [1, -0.5], [1, -1.5]]
    assert places[2] == [[2, 1], [2, 0], [2, -1]]
    colours = [tuple(column.get_facecolor()[0][:3]) for column in ax.collections]
    wanted = [plotting.COLORS[0], "white", plotting.COLORS[1]]
    assert colours == [pytest.approx(to_rgb(colour)) for colour in wanted]
    for layer, text in enumerate(ax.texts):
        assert text.get_position() == (layer, pytest.approx(-2.4))  # below the lowest unit
        assert (text.get_ha(), text.get_va()) == ("center", "top")
    ends = {(*map(tuple, line.get_xydata().tolist()),) for line in ax.lines}
    left = {(tuple(a), tuple(b)) for n in (0, 1) for a in places[n] for b in places[n + 1]}
    assert ends == left
    assert all(line.get_zorder() < ax.collections[0].get_zorder() for line in ax.lines)
    assert ax.get_xlim() == (-0.5, 2.5)
    assert ax.get_ylim() == pytest.approx((-3.2, 2.1))
    assert not ax.axison
    bare = plotting.network([1, 3], ax=plt.figure().add_subplot())
    assert bare.get_ylim() == pytest.approx((-1.6, 1.6))
