"""The pictures: what is drawn where, whether it can be read, and that nothing of matplotlib's global state is used."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pipeline import figures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, beside their files."""
    kept: list[Figure] = []
    save = figures._save

    def keep(figure: Figure, path: Path) -> None:
        kept.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "_save", keep)
    return kept


def matrix(classes: int, most: int) -> np.ndarray:
    generator = np.random.default_rng(classes)
    return generator.poisson(0.4, (classes, classes)) + np.diag(generator.integers(most // 2, most, classes))


def test_the_matrix_shows_counts_and_shares_of_rows(tmp_path: Path, drawn: list[Figure]) -> None:
    counts = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])
    figures.confusion_matrix(tmp_path / "c.png", counts, ["a", "b", "never"], title="held out")
    axes = drawn[0].axes[0]
    shares = np.asarray(axes.images[0].get_array())
    assert shares.tolist() == [[0.8, 0.2, 0], [0.25, 0.75, 0], [0, 0, 0]]
    said = {tuple(map(int, reversed(text.get_position()))): text.get_text() for text in axes.texts}
    assert said == {(0, 0): "8\n80%", (0, 1): "2\n20%", (0, 2): "0", (1, 0): "1\n25%", (1, 1): "3\n75%", (1, 2): "0"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a (10)", "b (4)", "never (0)"]
    assert [patch.get_hatch() for patch in axes.patches] == ["////"]  # the row that nobody belongs to
    assert axes.get_title(loc="left").startswith("held out\n")


@pytest.mark.parametrize(
    ("classes", "most"),
    [
        (2, 150),
        (2, 3_000_000),
        (12, 90_000),
        (30, 9_000),
        pytest.param(101, 60_000, marks=pytest.mark.slow),  # 10,201 cells
    ],
)
def test_every_count_can_be_read_and_lies_in_its_cell(
    classes: int, most: int, tmp_path: Path, drawn: list[Figure]
) -> None:
    labels = [f"class number {number}" for number in range(classes)]
    figures.confusion_matrix(tmp_path / "c.png", matrix(classes, most), labels)
    axes = drawn[0].axes[0]
    renderer = FigureCanvasAgg(drawn[0]).get_renderer()
    cell = axes.get_window_extent(renderer).width / classes
    for text in axes.texts:
        assert text.get_fontsize() >= 4
        box = text.get_window_extent(renderer)
        assert box.width <= cell * 1.02
        assert box.height <= cell
    with Image.open(tmp_path / "c.png") as image:
        assert max(image.size) < 3600
    edges = [label.get_window_extent(renderer) for label in axes.get_xticklabels()]
    assert all(one.x1 <= other.x0 + 1 for one, other in itertools.pairwise(edges))


def test_labels_are_drawn_as_they_are(tmp_path: Path, drawn: list[Figure]) -> None:
    labels = ["a $x_1$ {thing", "日本語", "two\nlines", "un\udcffdecodable", "so long " * 9, "%s \\frac"]
    figures.confusion_matrix(tmp_path / "c.png", matrix(6, 9), labels, title="$\\alpha")
    said = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    assert said[:3] == ["a $x_1$ {thing", "日本語", "two lines"]
    assert said[4].startswith("so long so")
    assert len(said[4]) <= 28
    assert "…" in said[4]


def test_equal_numbers_give_equal_files(tmp_path: Path) -> None:
    for name in ("one.png", "other.png"):
        figures.confusion_matrix(tmp_path / name, matrix(4, 9), list("abcd"))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def history(lengths: dict[tuple[int, str], int]) -> pd.DataFrame:
    """Epochs of trainings: (seed, fold) -> how many."""
    return pd.DataFrame(
        {
            "seed": seed,
            "fold": fold,
            "member": 0,
            "epoch": epoch,
            "train_loss": 1 / epoch + seed,
            "validation_loss": 2 / epoch + seed,
            "validation_accuracy": epoch / 10,
        }
        for (seed, fold), epochs in lengths.items()
        for epoch in range(1, epochs + 1)
    )


def test_curves_of_all_trainings_and_their_mean(tmp_path: Path, drawn: list[Figure]) -> None:
    epochs = history({(0, "1"): 4, (0, "2"): 3, (1, "1"): 2, (1, "2"): 2})
    best = {(0, "1", 0): 3, (0, "2", 0): 3, (1, "1", 0): 1, (1, "2", 0): 2}
    figures.learning_curves(tmp_path / "l.png", epochs, monitor="accuracy", best=best)
    loss, metric = drawn[0].axes
    assert len(loss.lines) == 2 * (4 + 1)
    assert len(metric.lines) == 4 + 1
    mean = max(loss.lines[:5], key=lambda line: line.get_linewidth())
    assert mean.get_xdata().tolist() == [1, 2, 3]  # at epoch 4 less than half of them still run
    assert mean.get_ydata().tolist() == pytest.approx([1.5, 1.0, 1 / 3])
    assert sorted(map(tuple, metric.collections[0].get_offsets().tolist())) == [(1, 0.1), (2, 0.2), (3, 0.3), (3, 0.3)]
    assert not loss.collections
    styles = {line.get_linestyle() for line in loss.lines}
    assert len(styles) == 2, "training and validation differ by more than colour"
    with Image.open(tmp_path / "l.png") as image:
        assert image.width > 900


def test_a_fold_number_read_from_a_table_is_found(tmp_path: Path, drawn: list[Figure]) -> None:
    epochs = history({(0, "1"): 2}).astype({"fold": int})
    figures.learning_curves(tmp_path / "l.png", epochs, best={(0, "1", 0): 2})
    (axes,) = drawn[0].axes
    assert axes.collections[0].get_offsets().tolist() == [[2, 1.0]]
    assert all(place == round(place) for place in axes.get_xticks()), "epochs are counted"


def test_curves_without_validation_and_of_one_epoch(tmp_path: Path, drawn: list[Figure]) -> None:
    epochs = history({(0, "test"): 1})[["seed", "fold", "member", "epoch", "train_loss"]]
    figures.learning_curves(tmp_path / "l.png", epochs, monitor="accuracy", best={(0, "test", 0): 1})
    (axes,) = drawn[0].axes
    assert len(axes.lines) == 1
    assert axes.lines[0].get_marker() == "o"
    assert axes.collections[0].get_offsets().tolist() == [[1, 1.0]]


@pytest.mark.parametrize("count", [0, 1, 30, 5000])
def test_scatter_has_one_scale_for_both_axes(count: int, tmp_path: Path, drawn: list[Figure]) -> None:
    target = np.random.default_rng(0).normal(5, 2, count).astype(np.float32)
    figures.scatter(tmp_path / "s.png", target, target * 3 + 1, title="hours")
    axes = drawn[0].axes[0]
    assert axes.get_xlim() == axes.get_ylim()
    low, high = axes.get_xlim()
    assert all(low <= value <= high for value in (*target, *(target * 3 + 1)))
    assert len(axes.collections[0].get_offsets()) == count


def test_neither_pyplot_nor_a_display_is_touched(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from pipeline import figures;"
        "figures.scatter(Path(sys.argv[1]), np.arange(3.0), np.arange(3.0));"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    root = Path(figures.__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s.png")], cwd=root, check=False)
    assert run.returncode == 0
