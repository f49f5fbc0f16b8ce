"""The folds of a run: the parts of its videos, however they were asked for, and what is worth knowing about them."""

from pipeline import splits
from pipeline.bank import Bank
from pipeline.errors import UserError
from pipeline.learning import Learning
from pipeline.material import Material
from pipeline.splits import Fold


def choose_folds(learning: Learning, bank: Bank, material: Material) -> tuple[list[Fold], str, list[str]]:
    """From a file of splits, else as many folds as asked for, else by the bank's column, else a random part.

    Args:
        learning: what was asked.
        bank: whose catalog has the column.
        material: the videos, with their classes and groups.

    Returns:
        the folds, how they came about in words, and lines worth telling: leaks among them.

    Raises:
        UserError: there is no such column, or no such split of these videos.
    """
    ids = material.sequences[0].ids
    strata, groups, seed = material.strata, material.groups, learning.split_seed
    kinds = f"{'grouped' if groups else ''}{' and ' if groups and strata else ''}{'stratified' if strata else ''}"
    catalog = bank.catalog.set_index("id")
    notes: list[str] = []
    if learning.splits is not None:
        folds, notes = splits.read_splits(learning.splits, ids)
        how = f"as in {learning.splits}"
    elif learning.folds is not None:
        folds = splits.cross_validation(ids, strata, groups, learning.folds, seed)
        how = f"{learning.folds} folds{', ' if kinds else ''}{kinds}, seed {seed}"
    else:
        if learning.split_column not in catalog.columns:
            raise UserError(
                f"The bank has no column {learning.split_column!r} for --split-column; it has "
                f"{', '.join(map(str, catalog.columns))}."
            )
        values = [str(catalog.at[video, learning.split_column]) for video in ids]
        if any(values) or learning.split_column != "split":
            fold, notes = splits.from_column(ids, values)
            folds, how = [fold], f"the bank's column {learning.split_column}"
        else:
            folds = [splits.holdout(ids, strata, groups, learning.test_share, seed)]
            how = f"{learning.test_share:.0%} held out at random{', ' if kinds else ''}{kinds}, seed {seed}"
    finished = []
    for fold in folds:
        if not fold.validation and learning.validation_share:
            fold, note = splits.with_validation(fold, strata, groups, learning.validation_share, seed)
            notes += [note] if note else []
        finished.append(fold)
    leaks = [*splits.leakage(finished, groups), *splits.shared_files(finished, material.digests)]
    return finished, how, [*notes, *leaks]
