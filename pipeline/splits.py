"""Which videos train, which choose and which are scored: the parts of a split, and the rules that make them.

A split is one `Fold` ("test") or several (cross-validation, "1" to "K"); in each, no video is in two parts. Parts come
from a column of the bank, from a file, or are drawn at random from a seed: whole groups (clips of one recording, of
one person) where there are groups, and with every class in proportion where there are classes.

A video without a group, where others have one, is a group of its own.
"""

import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from pipeline.errors import UserError
from pipeline.ids import natural_key
from pipeline.tables import delimiter_of, read_text

PARTS = ("train", "validation", "test")
_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_COLUMNS = ("id", "fold", "part")
# A fold has a folder of its name in the run (`pipeline.runs`), where "all" and -seedN mean something else.
_FOLD_NAME = re.compile(r"(?!all$)\w[\w .+=-]*(?<! )(?<!\.)", re.I)
_SEED_NAME = re.compile(r"-seed\d+$", re.I)
_DRAWS = 1000  # of groups, of which the one nearest to the share is taken

Strata = Mapping[str, str]  # video id -> its class
Groups = Mapping[str, str]  # video id -> its recording, person, …


@dataclass(frozen=True)
class Fold:
    """The ids of one split's parts, disjoint. `validation` may be empty, `train` and `test` are not."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def groups_from(ids: Sequence[str], values: Sequence[str]) -> tuple[dict[str, str] | None, list[str]]:
    """The group of each video from a column, and lines worth telling; None where no video has a group.

    A video without a group becomes one of its own, under its id.
    """
    missing = [video for video, value in zip(ids, values, strict=True) if not value]
    if len(missing) == len(ids):
        return None, []
    notes = []
    if missing:
        notes.append(f"videos without a group, each taken as a group of its own: {len(missing)}, e.g. {missing[0]}")
    return {video: value or video for video, value in zip(ids, values, strict=True)}, notes


def part_named(value: str) -> str | None:
    """The part that somebody calls so, in any case of letters; None where nobody does."""
    return _NAMES.get(value.strip().lower())


def from_column(ids: Sequence[str], values: Sequence[str]) -> tuple[Fold, list[str]]:
    """The split that a column of the bank holds, and lines worth telling.

    `train` or `training`; `val`, `valid`, `validation` or `dev`; `test` or `testing`, in any case. Videos with an
    empty value are left out. Where there is no test part, the validation part is the test.

    Raises:
        UserError: another value, no training part, or nothing to test on.
    """
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    left_out = []
    for video, value in zip(ids, values, strict=True):
        if not value.strip():
            left_out.append(video)
            continue
        part = part_named(value)
        if part is None:
            raise UserError(
                f"The split of {video} is {value!r}; expected one of {', '.join(_NAMES)}. "
                "Mend the column, or give another --split-column, or --folds."
            )
        parts[part].append(video)
    notes = []
    if left_out:
        notes.append(f"videos in no part of the split, left out: {len(left_out)}, e.g. {left_out[0]}")
    if parts["validation"] and not parts["test"]:
        notes.append(f"the split has no test part: its validation part of {len(parts['validation'])} is the test")
        parts["validation"], parts["test"] = [], parts["validation"]
    for part in ("train", "test"):
        if not parts[part]:
            counts = ", ".join(f"{len(parts[name])} {name}" for name in PARTS)
            raise UserError(f"The split column leaves no video to {part} on ({counts}). Mend it, or ask for folds.")
    return Fold("test", *(tuple(parts[part]) for part in PARTS)), notes


def holdout(ids: Sequence[str], strata: Strata | None, groups: Groups | None, share: float, seed: int) -> Fold:
    """One random split whose test part is about `share` of the videos: every class in proportion, whole groups.

    Without groups, the share of each class, but at least one video and not all. With groups, of 1000 random draws of
    groups the one whose counts per class come nearest to the share.

    Raises:
        UserError: a share outside 0 to 1, or too few videos or groups for every class to be in both parts.
    """
    if not 0 < share < 1:
        raise UserError(f"The share of videos to test on is {share:g}; it must lie between 0 and 1, as 0.2 does.")
    lacking = _too_few(ids, strata, groups, 2)
    if lacking:
        raise UserError(f"{lacking}; a split into training and test needs 2. Add videos, or leave that class out.")
    test = _draw(ids, strata, groups, share, seed)
    return Fold("test", tuple(video for video in ids if video not in test), (), _in_order(ids, test))


def cross_validation(
    ids: Sequence[str], strata: Strata | None, groups: Groups | None, folds: int, seed: int
) -> list[Fold]:
    """K folds that test every video once: stratified where there are classes, whole groups where there are groups.

    StratifiedGroupKFold, StratifiedKFold, GroupKFold or KFold of scikit-learn, shuffled by the seed. As many folds as
    groups (or as videos, without groups) leave one out at a time.

    Raises:
        UserError: fewer than 2 folds, more folds than groups or videos, a class with fewer videos than folds, or in
            one group alone.
    """
    units = sorted({groups[video] for video in ids}) if groups else list(ids)
    what = "groups" if groups else "videos"
    if not 2 <= folds <= len(units):
        raise UserError(
            f"{folds} folds of {len(units)} {what} cannot be made; ask for 2 to {len(units)}."
            if len(units) >= 2
            else f"Folds need at least 2 {what}, and there is {len(units)}. Add videos."
        )
    if folds == len(units):
        unit_of = groups or {video: video for video in ids}
        members: dict[str, list[str]] = defaultdict(list)
        for video in ids:
            members[unit_of[video]].append(video)
        return [_fold(str(number), ids, members[unit]) for number, unit in enumerate(units, start=1)]
    needed = 2 if groups else folds  # a class in fewer groups than folds is merely missing from some test parts
    lacking = _too_few(ids, strata, groups, needed)
    if lacking:
        raise UserError(f"{lacking}; {folds} folds need {needed}. Add videos, ask for fewer folds, or leave it out.")
    splitter: StratifiedGroupKFold | StratifiedKFold | GroupKFold | KFold
    if strata and groups:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    elif strata:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    elif groups:
        splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    else:
        splitter = KFold(folds, shuffle=True, random_state=seed)
    classes = [strata[video] for video in ids] if strata else None
    names = [groups[video] for video in ids] if groups else None
    made = [
        _fold(str(number), ids, [ids[row] for row in rows])
        for number, (_, rows) in enumerate(splitter.split(np.zeros(len(ids)), classes, names), start=1)
    ]
    empty = next((fold.name for fold in made if not fold.test), None)
    if empty:
        raise UserError(
            f"Fold {empty} of {folds} has no test video, as the groups are so unequal. Ask for fewer folds."
        )
    return made


def with_validation(
    fold: Fold, strata: Strata | None, groups: Groups | None, share: float, seed: int
) -> tuple[Fold, str | None]:
    """Set aside about `share` of a fold's training part for validation, drawn as in `holdout`.

    Returns:
        the new fold and None; or, where a class has fewer than 2 groups (videos, without groups) in the training part
        and so could not be both in training and in validation, the fold as it was and a line that says so.
    """
    lacking = _too_few(fold.train, strata, groups, 2)
    if lacking:
        return fold, f"fold {fold.name} has no validation part: in its training part, {_lower(lacking)}"
    chosen = _draw(fold.train, strata, groups, share, seed)
    train = tuple(video for video in fold.train if video not in chosen)
    return replace(fold, train=train, validation=_in_order(fold.train, chosen)), None


def leakage(folds: Sequence[Fold], groups: Groups | None) -> list[str]:
    """A line per fold in which a group is in the training (or validation) part and in the test part too."""
    notes = []
    for fold in folds if groups else ():
        assert groups is not None
        seen = {groups[video] for video in (*fold.train, *fold.validation)}
        leaked = [video for video in fold.test if groups[video] in seen]
        if leaked:
            count = len({groups[video] for video in leaked})
            notes.append(
                f"LEAKAGE in fold {fold.name}: {count} of {len({groups[video] for video in fold.test})} groups of the "
                f"test part are in training too ({len(leaked)} of {len(fold.test)} test videos, e.g. {leaked[0]} of "
                f"group {groups[leaked[0]]}), so its score flatters"
            )
    return notes


def shared_files(folds: Sequence[Fold], digests: Mapping[str, str]) -> list[str]:
    """A line where files of a test part are in training (or validation) too: copies under other ids, or other spans.

    Args:
        folds: the folds.
        digests: video -> digest of its file, empty where it is not known.
    """
    leaked = []
    for fold in folds:
        of_file = {digests[video]: video for video in (*fold.train, *fold.validation) if digests[video]}
        leaked += [(video, of_file[digests[video]]) for video in fold.test if digests[video] in of_file]
    if not leaked:
        return []
    video, other = leaked[0]
    tested = sum(len(fold.test) for fold in folds)
    return [
        f"LEAKAGE: {len(leaked)} of {tested} test videos are of files that are in training too (copies, or other spans "
        f"of the same file), e.g. {video} and {other}, so the score flatters. Give the bank a group column"
    ]


def preflight(strata: Strata, groups: Groups | None, folds: Sequence[Fold]) -> list[str]:
    """The lines of a table: for every class its videos, groups, and how many are in each part (from least to most).

    Raises:
        UserError: a class is missing from the training part of a fold, or has no test video in any.
    """
    videos = {video for fold in folds for video in (*fold.train, *fold.validation, *fold.test)}
    classes = sorted({strata[video] for video in videos}, key=natural_key)
    totals = Counter(strata[video] for video in videos)
    counts = {part: [Counter(strata[video] for video in getattr(fold, part)) for fold in folds] for part in PARTS}
    for label in classes:
        for fold, count in zip(folds, counts["train"], strict=True):
            if not count[label]:
                raise UserError(
                    f"Class {label!r} ({_counted(totals[label], 'video')}{_in_groups(label, strata, groups, videos)}) "
                    f"has none in the training part of fold {fold.name}. Ask for another split, or leave the class out."
                )
        if not any(count[label] for count in counts["test"]):
            raise UserError(
                f"Class {label!r} ({_counted(totals[label], 'video')}) has no test video. "
                "Ask for another split, or leave the class out."
            )
    rows = []
    for label in classes:
        row = {"class": label, "videos": str(totals[label])}
        if groups:
            row["groups"] = str(len({groups[video] for video in videos if strata[video] == label}))
        rows.append(row | {part: _range([count[label] for count in counts[part]]) for part in PARTS})
    row = {"class": "all", "videos": str(len(videos))}
    if groups:
        row["groups"] = str(len({groups[video] for video in videos}))
    rows.append(row | {part: _range([len(getattr(fold, part)) for fold in folds]) for part in PARTS})
    widths = {name: max(len(name), *(len(cells[name]) for cells in rows)) for name in rows[0]}
    return [
        "  ".join(f"{cells[name]:{'<' if name == 'class' else '>'}{widths[name]}}" for name in widths)
        for cells in [{name: name for name in widths}, *rows]
    ]


def sibling_warning(ids: Iterable[str]) -> str | None:
    """A warning where ids look like several clips of one recording, as `v_X_g01_c01` and `v_X_g01_c02` do; else None.

    Clips of one recording are spans of one file (`a@0-2.5`), or names in one folder that differ only in the number
    after a separator and perhaps a word (`a_1`, `a-part1`, `a_c01`), where the folder has at least two such names
    before the number: a folder of `walk_1` to `walk_90` is merely numbered.
    """
    spans: dict[str, list[str]] = defaultdict(list)
    families: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    count = 0
    for video in ids:
        count += 1
        if span := re.fullmatch(r"(.+)@[0-9.]+-([0-9.]+|end)(~[0-9]+)?", video):
            spans[span.group(1)].append(video)
            continue
        folder, _, name = video.rpartition("/")
        if clip := re.fullmatch(
            r"(.*[^_\-. ])[_\-. ]+(?:c|clip|part|pt|seg|segment|scene|shot|chunk|take)?[_\-. ]?[0-9]+", name, re.I
        ):
            families[folder][clip.group(1)].append(video)
    found = [members for members in spans.values() if len(members) > 1]
    for stems in families.values():
        several = [members for members in stems.values() if len(members) > 1]
        found += several if len(several) > 1 else []
    if not found:
        return None
    clips = sum(map(len, found))
    return (
        f"{clips} of {count} ids look like clips of one recording, e.g. {found[0][0]} and {found[0][1]}, and there are "
        "no groups to keep them in one part: if they are, the score flatters. Give the bank a group column."
    )


def write_splits(path: Path, folds: Sequence[Fold]) -> None:
    """Write folds as CSV: a line per video and fold with columns id, fold, part (train, validation or test)."""
    rows = [(video, fold.name, part) for fold in folds for part in PARTS for video in getattr(fold, part)]
    pd.DataFrame(rows, columns=list(_COLUMNS)).to_csv(path, index=False)


def read_splits(path: Path, ids: Sequence[str] | None = None) -> tuple[list[Fold], list[str]]:
    """The folds of a CSV as `write_splits` writes it, for the videos of a bank, and lines worth telling.

    Ids of the file that the bank lacks, and videos of the bank that the file lacks, are left out and counted.

    Args:
        path: the file.
        ids: of the bank; None takes all that the file lists.

    Raises:
        UserError: it cannot be read, lacks a column, names an unknown part, or a fold so that no folder can be, has a
            video twice in one fold or in two test parts, or leaves a fold nothing to train or test on.
    """
    text = read_text(path)
    header = text.partition("\n")[0]
    try:
        # Not `read_table`: it strips cells, and an id may begin or end with a space.
        table = pd.read_csv(io.StringIO(text), sep=delimiter_of(header), dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{path} could not be read as a CSV of splits: {str(error).strip()}.") from error
    missing = [column for column in _COLUMNS if column not in table]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r} but {', '.join(map(str, table.columns))}; expected id, fold, part."
        )
    parts = table["part"].map(part_named)
    if parts.isna().any():
        row = table[parts.isna()].iloc[0]
        raise UserError(f"{path}: the part of {row['id']} is {row['part']!r}; expected train, validation or test.")
    for name in table["fold"].unique():
        if not _FOLD_NAME.fullmatch(name) or _SEED_NAME.search(name):
            raise UserError(
                f"{path}: a fold cannot be called {name!r}; call it by a number or a word, but not all or -seed1."
            )
    given = set(table["id"])
    ids = [*dict.fromkeys(table["id"])] if ids is None else ids
    known = set(ids)
    unknown, unlisted = sorted(given - known), [video for video in ids if video not in given]
    if not given & known:
        example = f", e.g. {unknown[0]}" if unknown else ""
        raise UserError(f"None of the {len(given)} ids of {path} is in the bank{example}. Is it of another bank?")
    notes = []
    if unknown:
        notes.append(f"ids of {path} that the bank does not have: {len(unknown)}, e.g. {unknown[0]}")
    if unlisted:
        notes.append(f"videos that {path} does not list, left out: {len(unlisted)}, e.g. {unlisted[0]}")
    table = table.assign(part=parts)[table["id"].isin(known)]
    twice = table[table.duplicated(["id", "fold"])]
    if len(twice):
        raise UserError(f"{path} has {twice.iloc[0]['id']} twice in fold {twice.iloc[0]['fold']!r}. Leave one line.")
    tested = table[table["part"] == "test"]
    again = tested[tested.duplicated("id")]
    if len(again):
        raise UserError(f"{path} tests {again.iloc[0]['id']} in more than one fold; each video is tested once at most.")
    folds = []
    for name, rows in table.groupby("fold", sort=False):
        members = {part: tuple(rows.loc[rows["part"] == part, "id"]) for part in PARTS}
        for part in ("train", "test"):
            if not members[part]:
                raise UserError(f"{path} leaves fold {name!r} no video to {part} on. Mend it, or give another file.")
        folds.append(Fold(str(name), **members))
    return folds, notes


def _fold(name: str, ids: Sequence[str], test: Iterable[str]) -> Fold:
    chosen = set(test)
    return Fold(name, tuple(video for video in ids if video not in chosen), (), _in_order(ids, chosen))


def _in_order(ids: Sequence[str], chosen: set[str]) -> tuple[str, ...]:
    return tuple(video for video in ids if video in chosen)


def _too_few(ids: Sequence[str], strata: Strata | None, groups: Groups | None, needed: int) -> str | None:
    """What is said of the first class with fewer groups (videos, without groups) than needed."""
    units: dict[str, set[str]] = defaultdict(set)
    for video in ids:
        units[strata[video] if strata else ""].add(groups[video] if groups else video)
    for label in sorted(units, key=natural_key):
        found = len(units[label])
        if found < needed:
            who = f"Class {label!r} has" if strata else "There is" if found == 1 else "There are"
            if groups and not strata:
                return f"{who} only {_counted(found, 'group')}"
            return (
                f"{who} videos in only {_counted(found, 'group')}"
                if groups
                else f"{who} only {_counted(found, 'video')}"
            )
    return None


def _draw(ids: Sequence[str], strata: Strata | None, groups: Groups | None, share: float, seed: int) -> set[str]:
    """About `share` of the videos at random; of each class at least one group stays and, where possible, one goes."""
    classes, class_of = np.unique([strata[video] if strata else "" for video in ids], return_inverse=True)
    generator = np.random.default_rng(seed)
    if groups is None:
        members = [generator.permutation(np.flatnonzero(class_of == label)) for label in range(len(classes))]
        sizes = [min(max(round(share * len(rows)), 1), len(rows) - 1) for rows in members]
        return {ids[row] for rows, size in zip(members, sizes, strict=True) for row in rows[:size].tolist()}
    units, unit_of = np.unique([groups[video] for video in ids], return_inverse=True)
    counts = np.zeros((len(units), len(classes)))
    np.add.at(counts, (unit_of, class_of), 1)
    totals = counts.sum(0)
    best, least = None, np.inf
    for _ in range(_DRAWS):
        order = generator.permutation(len(units))
        drawn = counts[order].cumsum(0)[:-1]  # row i: the counts per class of the first i + 1 groups
        size = int(np.abs(drawn.sum(1) - share * len(ids)).argmin())
        taken = drawn[size]
        one_sided = np.count_nonzero(taken == totals) * len(ids) + np.count_nonzero(taken == 0)
        cost = one_sided * len(ids) + np.abs(taken - share * totals).sum()
        if cost < least:
            best, least = order[: size + 1], cost
    chosen = set(best.tolist()) if best is not None else set()
    return {video for video, unit in zip(ids, unit_of.tolist(), strict=True) if unit in chosen}


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _in_groups(label: str, strata: Strata, groups: Groups | None, videos: set[str]) -> str:
    if not groups:
        return ""
    return f" in {_counted(len({groups[video] for video in videos if strata[video] == label}), 'group')}"


def _range(counts: Sequence[int]) -> str:
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]
