"""Edit score and segmental F1, against cases counted by hand and against the published loops written plainly."""

import numpy as np
import pytest

from pipeline.segment_metrics import edit_score, segmental_f1, segments

A = np.array


def plain_segments(labels, background):
    """One (label, start, end) per run, frame by frame."""
    found = []
    for frame, label in enumerate(labels):
        if frame and label == labels[frame - 1]:
            found[-1][2] = frame + 1
        else:
            found.append([label, frame, frame + 1])
    return [run for run in found if run[0] != background]


def plain_edit(target, predicted, background):
    """Levenshtein's table cell by cell."""
    p = [run[0] for run in plain_segments(predicted, background)]
    y = [run[0] for run in plain_segments(target, background)]
    if not p and not y:
        return 1.0
    table = [[max(i, j) if not (i and j) else 0 for j in range(len(y) + 1)] for i in range(len(p) + 1)]
    for i in range(1, len(p) + 1):
        for j in range(1, len(y) + 1):
            substitution = table[i - 1][j - 1] + (p[i - 1] != y[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, substitution)
    return 1 - table[-1][-1] / max(len(p), len(y))


def plain_counts(target, predicted, overlap, background):
    """True positives, false positives and false negatives by sets of frames."""
    true, found = plain_segments(target, background), plain_segments(predicted, background)
    hits, tp, fp = set(), 0, 0
    for label, start, end in found:
        best, best_iou = None, -1.0
        for index, (name, first, last) in enumerate(true):
            one, other = set(range(start, end)), set(range(first, last))
            iou = len(one & other) / len(set(range(min(start, first), max(end, last)))) if name == label else 0.0
            if iou > best_iou:
                best, best_iou = index, iou
        if best is not None and best_iou >= overlap and best not in hits:
            tp += 1
            hits.add(best)
        else:
            fp += 1
    return tp, fp, len(true) - len(hits)


def runs(generator, steps, classes):
    """Labels in runs of random length."""
    labels = np.repeat(generator.integers(classes, size=steps), generator.integers(1, 9, size=steps))[:steps]
    return labels.astype(np.int64)


def test_segments():
    names, starts, ends = segments(A([2, 2, 0, 0, 0, 1]))
    assert (names.tolist(), starts.tolist(), ends.tolist()) == ([2, 0, 1], [0, 2, 5], [2, 5, 6])
    names, starts, ends = segments(A([2, 2, 0, 0, 0, 1]), background=0)
    assert (names.tolist(), starts.tolist(), ends.tolist()) == ([2, 1], [0, 5], [2, 6])
    assert [len(part) for part in segments(A([], dtype=np.int64))] == [0, 0, 0]


def test_edit_by_hand():
    assert edit_score([A([0, 0, 1, 1, 2])], [A([0, 1, 1, 2, 2])]) == 1  # borders do not matter
    assert edit_score([A([0, 0, 1, 1])], [A([0, 1, 0, 1])]) == 0.5  # 0 1 0 1 needs two deletions, of four
    assert edit_score([A([0, 1]), A([1, 1])], [A([0, 1]), A([0, 0])]) == 0.5  # the mean over videos
    assert edit_score([A([0, 1, 0])], [A([0, 0, 0])], background=0) == 0
    assert edit_score([A([0, 0])], [A([0, 0])], background=0) == 1
    assert np.isnan(edit_score([], []))


def test_f1_by_hand():
    target = A([0] * 10 + [1] * 10)
    assert segmental_f1([target], [target], 0.5) == 1
    late = A([0] * 14 + [1] * 6)  # IoU 10/14 and 6/10
    assert segmental_f1([target], [late], 0.6) == 1
    assert segmental_f1([target], [late], 0.65) == 0.5
    flicker = A([0] * 4 + [1] + [0] * 5 + [1] * 10)  # the second 0 (IoU .5) comes after the first (IoU .4)
    assert segmental_f1([target], [flicker], 0.1) == pytest.approx(2 * 2 / (4 + 2))
    assert segmental_f1([target], [flicker], 0.45) == pytest.approx(2 * 2 / (4 + 2))
    assert segmental_f1([target], [flicker], 0.55) == pytest.approx(2 * 1 / (4 + 2))
    assert segmental_f1([target, target], [target, 1 - target], 0.5) == 0.5  # counted over videos together
    assert segmental_f1([target], [late], 0.65, background=1) == 1
    assert segmental_f1([target], [np.ones(20, np.int64)], 0.1, background=1) == 0
    assert np.isnan(segmental_f1([np.zeros(3, np.int64)], [np.zeros(3, np.int64)], 0.1, background=0))


@pytest.mark.parametrize("background", [None, 0])
def test_against_plain_loops(background):
    generator = np.random.default_rng(1)
    targets = [runs(generator, steps, 3) for steps in generator.integers(1, 60, size=40)]
    predictions = [
        np.where(generator.random(len(target)) < 0.8, target, runs(generator, len(target), 3)) for target in targets
    ]
    edits = [plain_edit(t, p, background) for t, p in zip(targets, predictions, strict=True)]
    assert edit_score(targets, predictions, background) == pytest.approx(np.mean(edits))
    assert 0.2 < np.mean(edits) < 0.9
    for overlap in (0.1, 0.25, 0.5):
        counts = [plain_counts(t, p, overlap, background) for t, p in zip(targets, predictions, strict=True)]
        tp, fp, fn = np.sum(counts, axis=0)
        precision, recall = tp / (tp + fp), tp / (tp + fn)
        f1 = 2 * precision * recall / (precision + recall)
        assert segmental_f1(targets, predictions, overlap, background) == pytest.approx(f1)
