"""Figures as PNG: confusion matrix, learning curves, predicted against true values, timelines of videos.

Drawn through matplotlib's objects and Agg alone, so neither a display nor pyplot's global state is touched, and the
same numbers give the same bytes. Colours are told apart without colour vision: shades of one hue for the matrix, and
for lines the palette of Okabe and Ito (2008), never colour alone. Text is drawn as it is, `$` and all.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pipeline.ids import readable

BLUE, ORANGE, BLACK, GREY = "#0072B2", "#D55E00", "#000000", "#777777"
_LINES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", BLACK)
_DASHES = ("-", "--", "-.", ":", (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)))
_DPI = 120
_LABEL_LETTERS = 28
_ROOMY = 0.5  # inches: a cell that takes two lines, and a zero where there is nothing
_SMALLEST_FONT = 4.0  # points: below this a count is written short ("12k")
_DARK_SHARE = 0.7  # of the row: from here on white text stands out more from the cell than black

_NAMED = ("seed", "fold", "member")

Curve = tuple[Any, ...]  # what names one training: its values in these columns


def confusion_matrix(path: Path, counts: np.ndarray, labels: Sequence[str], *, title: str = "") -> None:
    """Draw a confusion matrix: counts as text, colour by the share of the row's (true) class.

    Args:
        path: the PNG.
        counts: (K, K) int, rows true, columns predicted. A class without a row total is shown hatched.
        labels: K names.
        title: the line above.
    """
    classes = len(labels)
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    cell = 0.75 if classes <= 6 else 0.5 if classes <= 20 else 0.24  # inches
    side = cell * classes
    figure = Figure(figsize=(side + 2, side + 2), dpi=_DPI)
    axes = figure.add_axes((0, 0, side / (side + 2), side / (side + 2)))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in np.flatnonzero(totals == 0).tolist():
        axes.axhspan(row - 0.5, row + 0.5, facecolor="none", edgecolor=GREY, hatch="////", linewidth=0)
    for row in range(classes):
        for column in range(classes):
            if counts[row, column] or (totals[row] and cell >= _ROOMY):
                _count(axes, row, column, int(counts[row, column]), float(shares[row, column]), cell)
    font = 10 if classes <= 20 else 8
    names = [_text(label) for label in labels]
    crowded = max(map(len, names)) * font * 0.65 > cell * 72
    axes.set_xticks(range(classes), names, rotation=90 if crowded else 0, fontsize=font, parse_math=False)
    rows = [f"{name} ({total:,})" for name, total in zip(names, totals.tolist(), strict=True)]
    axes.set_yticks(range(classes), rows, fontsize=font, parse_math=False)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#DDDDDD", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted", fontsize=11)
    axes.set_ylabel("true (number)", fontsize=11)
    legend = "colour: share of the true class"
    axes.set_title(f"{_text(title, 80)}\n{legend}" if title else legend, fontsize=9, loc="left", parse_math=False)
    _save(figure, path)


def _count(axes: Axes, row: int, column: int, count: int, share: float, cell: float) -> None:
    """Write one count as large as its cell allows, and below it the per cent of the row where there is room."""
    points = cell * 72
    text = f"{count:,}"
    if _font(text, points) < _SMALLEST_FONT:
        text = f"{count / 1e6:.0f}M" if count >= 1e6 else f"{count / 1e3:.0f}k" if count >= 1e3 else text
    font = min(_font(text, points), 13 if cell >= _ROOMY else 8)
    if cell >= _ROOMY and count:
        text, font = f"{text}\n{share:.0%}", min(font, 10)
    colour = "white" if share > _DARK_SHARE else BLACK if count else GREY
    weight = "bold" if row == column else "normal"
    axes.text(column, row, text, ha="center", va="center", fontsize=font, color=colour, fontweight=weight)


def _font(text: str, points: float) -> float:
    """The size at which a number fits a cell of so many points: a digit is about 0.65 as wide as it is high."""
    return points * 0.9 / (0.65 * max(len(text), 2))


def learning_curves(
    path: Path, epochs: pd.DataFrame, *, monitor: str = "loss", best: Mapping[Curve, int] | None = None
) -> None:
    """Draw the losses, and the monitored metric beside them, over the epochs of one or many trainings.

    Each training is a thin line; the bold one is the mean of those that still run, as long as at least half of them do.
    A dot marks the epoch that each training kept.

    Args:
        path: the PNG.
        epochs: one row per epoch: epoch, train_loss, and where there was validation also validation_loss and
            validation_<monitor>. Columns seed, fold and member, where they are, tell the trainings apart.
        monitor: the metric that chose the epoch; "loss" needs no panel of its own.
        best: (seed, fold, member) as far as those columns are there -> the epoch that was kept.
    """
    keys = [name for name in _NAMED if name in epochs.columns]
    trainings: dict[Curve, pd.DataFrame] = (
        {tuple(map(str, key)): rows for key, rows in epochs.groupby(keys, sort=False, dropna=False)}
        if keys
        else {(): epochs}
    )
    kept = {tuple(map(str, key)): epoch for key, epoch in (best or {}).items()}
    metric = f"validation_{monitor}"
    panels = [("loss", [("train_loss", BLUE, "-", "training"), ("validation_loss", ORANGE, "--", "validation")])]
    if monitor != "loss" and metric in epochs.columns:
        panels.append((f"validation {monitor.replace('_', ' ')}", [(metric, ORANGE, "--", "validation")]))
    figure = Figure(figsize=(5.2 * len(panels), 3.6), dpi=_DPI, layout="constrained")
    marked = metric if metric in epochs.columns else "train_loss"
    for place, (name, lines) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        for column, colour, style, label in lines:
            if column in epochs.columns and epochs[column].notna().any():
                _curves(axes, trainings, column, colour, style, label)
        if marked in [column for column, *_ in lines]:
            _marks(axes, trainings, marked, kept)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # there is no epoch 1.25
        axes.set_ylabel(_text(name))
        _quiet(axes)
        axes.legend(fontsize=8, frameon=False)
    several = f" of {len(trainings)} trainings, bold: their mean" if len(trainings) > 1 else ""
    figure.suptitle(f"Learning curves{several}", fontsize=10, x=0.02, ha="left")
    _save(figure, path)


def _curves(
    axes: Axes, trainings: Mapping[Curve, pd.DataFrame], column: str, colour: str, style: str, label: str
) -> None:
    several = len(trainings) > 1
    for number, rows in enumerate(trainings.values()):
        thin = {"linewidth": 0.7, "alpha": 0.45} if several else {"linewidth": 1.8, "label": label}
        marker = "o" if len(rows) == 1 else None  # a line of one epoch would not show
        axes.plot(rows["epoch"], rows[column], style, color=colour, marker=marker, markersize=3, zorder=number, **thin)
    if several:
        table = pd.DataFrame({key: rows.set_index("epoch")[column] for key, rows in trainings.items()}).sort_index()
        mean = table.mean(axis=1)[table.notna().sum(axis=1) * 2 >= len(trainings)]
        axes.plot(mean.index, mean, style, color=colour, linewidth=2.4, label=f"{label}, mean", zorder=len(trainings))


def _marks(axes: Axes, trainings: Mapping[Curve, pd.DataFrame], column: str, kept: Mapping[Curve, int]) -> None:
    points = [
        (epoch, value)
        for key, rows in trainings.items()
        for epoch, value in zip(rows["epoch"], rows[column], strict=True)
        if kept.get(key) == epoch
    ]
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=22, facecolor="white", edgecolor=BLACK, linewidth=1, zorder=1000, label="epoch kept")


def scatter(path: Path, target: np.ndarray, predicted: np.ndarray, *, title: str = "") -> None:
    """Draw predicted against true values with the diagonal on which they are equal.

    Args:
        path: the PNG.
        target: (n,) float.
        predicted: (n,) float.
        title: the line above.
    """
    figure = Figure(figsize=(4.6, 4.6), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    both = np.concatenate([target, predicted]).astype(np.float64)
    low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, "--", color=GREY, linewidth=1, label="equal")
    many = len(target) > 2000
    axes.scatter(
        target,
        predicted,
        s=6 if many else 20,
        color=BLUE,
        alpha=0.25 if many else 0.7,
        linewidth=0,
        label=f"{len(target):,} held out",
        rasterized=True,
    )
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel="true", ylabel="predicted")
    _quiet(axes)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    if title:
        axes.set_title(_text(title, 60), fontsize=10, loc="left", parse_math=False)
    _save(figure, path)


@dataclass(frozen=True)
class Timeline:
    """One video of a figure.

    Attributes:
        title: above it.
        pictures: of equal stretches of it, (H, W, 3) uint8 each; or none, and `gap` says why.
        times: (P,) float64 of the points of `lines`, name -> (P,); `end` of the axis, and its name `unit`.
        bars: of labels per frame [place in `labels`, start, end], start and end in shares of the axis.
        limits: of the other axis, if they are known, and its name `y`.
    """

    title: str
    pictures: Sequence[np.ndarray]
    gap: str
    times: np.ndarray
    lines: Mapping[str, np.ndarray]
    unit: str
    end: float
    y: str
    limits: tuple[float, float] | None = None
    bars: Sequence[Sequence[float]] = ()
    labels: Sequence[str] = ()


def timelines(path: Path, videos: Sequence[Timeline]) -> None:
    """Draw videos one below the other: pictures of each, and below them what is said over its time.

    Args:
        path: the PNG.
        videos: one or more.
    """
    width, left, strip, bar, lines, gap = 9.0, 0.7, 0.85, 0.22, 1.5, 0.95  # inches
    heights = [strip + (bar + 0.06) * bool(each.bars) + lines + gap for each in videos]
    figure = Figure(figsize=(left + width, sum(heights)), dpi=_DPI)
    top = sum(heights)

    def place(above: float, height: float, x: float = 0.0, share: float = 1.0) -> Axes:
        whole = left + width
        return figure.add_axes(
            ((left + x * width) / whole, (above - height) / sum(heights), share * width / whole, height / sum(heights))
        )

    for each, height in zip(videos, heights, strict=True):
        at = top - 0.3
        figure.text(
            left / (left + width),
            (at + 0.07) / sum(heights),
            _text(each.title, 110),
            fontsize=10,
            fontweight="bold",
            parse_math=False,
        )
        _strip(each, partial(place, at, strip))
        at -= strip + 0.06
        if each.bars:
            _bar(place(at, bar), each)
            at -= bar + 0.06
        _lines_over_time(place(at, lines), each)
        top -= height
    _save(figure, path)


def _strip(video: Timeline, place: Callable[[float, float], Axes]) -> None:
    count = len(video.pictures)
    if not count:
        axes = place(0, 1)
        axes.text(0, 0.5, f"No pictures: {_text(video.gap, 110)}", fontsize=8, color=GREY, parse_math=False)
        axes.set_axis_off()
    for number, picture in enumerate(video.pictures):
        axes = place(number / count + 0.002, 1 / count - 0.004)
        axes.imshow(picture, interpolation="antialiased")
        axes.set_axis_off()


def _bar(axes: Axes, video: Timeline) -> None:
    for place, start, stop in video.bars:
        colour = _LINES[int(place) % len(_LINES)]
        axes.add_patch(Rectangle((start, 0), stop - start, 1, facecolor=colour, edgecolor="white", linewidth=0.5))
        if stop - start > 0.08:
            white = colour in (BLUE, BLACK)
            name = _text(video.labels[int(place)], max(3, int(100 * (stop - start))))
            axes.text(
                (start + stop) / 2,
                0.46,
                name,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if white else BLACK,
                parse_math=False,
            )
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _lines_over_time(axes: Axes, video: Timeline) -> None:
    for place, (name, values) in enumerate(video.lines.items()):
        colour, dashes = _LINES[place % len(_LINES)], _DASHES[place % len(_DASHES)]
        marker = "o" if len(video.times) == 1 else None  # a line of one point would not show
        axes.plot(video.times, values, linestyle=dashes, color=colour, marker=marker, linewidth=1.8, label=_text(name))
    axes.set_xlim(0, video.end)
    if video.limits:
        axes.set_ylim(video.limits[0] - 0.02, video.limits[1] + 0.02)
    axes.set_xlabel(video.unit, fontsize=9)
    axes.set_ylabel(_text(video.y), fontsize=9, parse_math=False)
    axes.tick_params(labelsize=8)
    _quiet(axes)
    legend = axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.005, 1.04))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _quiet(axes: Axes) -> None:
    """A faint grid behind what is drawn, and no box."""
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _text(text: str, letters: int = _LABEL_LETTERS) -> str:
    """A name from anywhere in one line that fits: no control characters, and cut in the middle where it is long."""
    line = readable(" ".join(text.split()))
    half = (letters - 1) // 2
    return line if len(line) <= letters else f"{line[:half]}…{line[-half:]}"


def _save(figure: Figure, path: Path) -> None:
    """Write the PNG; without the library's version in it, so that equal pictures are equal files."""
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # Scripts that the shipped font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.15, metadata={"Software": None})
