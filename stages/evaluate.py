"""A finished run scored once more: on what it held out, against what it wrote then; or on videos of other banks.

Of a fine-tuned run every fold has a backbone of its own, and no bank has what these make of the videos: what each fold
held out is embedded anew, from the files, into a bank that is gone afterwards. The scores are then not quite those of
training. In float32 they are as near as they are between devices. In half precision the trained part was computed by
autocast, its weights in float32, and here all of it is in half precision, as everything that is extracted: measured on
ImageNet weights in bfloat16, a probability moved by at most 0.005 with SqueezeNet and by 0.12 with a MobileNetV2 whose
every block was trained.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import recorded, rescoring, runs, splits
from pipeline.bank import Bank
from pipeline.bootstrap import bootstrap
from pipeline.bundles import Bundle, check_banks, load_bundle, load_for, seen_in_training
from pipeline.encoder import choose_device
from pipeline.errors import UserError
from pipeline.held_out import hold_out
from pipeline.recorded import Recorded, read_run
from pipeline.results import HeldOut, class_table, joined, metrics_of, score_rows
from pipeline.sources import source_path
from pipeline.splits import PARTS
from pipeline.starting_point import find_sources
from pipeline.targets import as_asked
from pipeline.writing import check_outputs, write_json
from stages import events
from stages.console import Display, counted, interval_words, number

OK, DIFFERENT = 0, 1
TOLERANCE = 0.005  # of a probability, or of a value in units of the largest one: between devices, not between runs
_SHOWN_CLASSES = 30

Reading = Callable[[Bundle, Sequence[str]], AbstractContextManager[Sequence[Bank]]]


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything that `framebank evaluate` can be told; the defaults are those of the command.

    `split` is "test", "all" or None for the usual: what was held out of the run's own bank, all of other banks.
    `target`, `targets`, `segments` and `frame_values` say where other banks' targets are, if not where the run's were.
    """

    run: Path
    banks: tuple[Path, ...] = ()
    split: str | None = None
    target: str | None = None
    targets: Path | None = None
    segments: Path | None = None
    frame_values: Path | None = None
    json: Path | None = None
    backbone: str | None = None
    device: str = "auto"
    quiet: bool = False


def run(config: EvaluateConfig) -> int:
    """Score the run's videos, or other banks', and print the metrics.

    Returns:
        the exit status: 0; 1 if the run's own held-out videos get other scores than it wrote down.

    Raises:
        UserError: it could not be done as asked.
    """
    display = Display.beside(config.json, quiet=config.quiet)
    finished = read_run(config.run)
    device = choose_device(config.device)
    with ExitStack() as stack:
        remedy = f"give where it lies now: `framebank evaluate {config.run} BANK`"
        paths = config.banks or rescoring.banks_of(finished.config, config.run, remedy=remedy)
        check_outputs({"--json": config.json}, [*paths, *(config.run / name for name in runs.MADE)])
        banks = [stack.enter_context(Bank(path)) for path in paths]
        own = not config.banks or rescoring.is_own(finished.config, banks, finished.tested)
        if own and finished.finetuned is not None:
            anew = _anew(display, finished, banks[0], device, config.backbone)
            return _own(display, config, finished, banks, device, anew)
        for note in check_banks(load_bundle(config.run), banks):
            display.field("Note", note)
        if own:
            return _own(display, config, finished, banks, device, lambda _bundle, _ids: nullcontext(banks))
        return _other(display, config, finished, banks, device)


def _anew(display: Display, finished: Recorded, banked: Bank, device: torch.device, typed: str | None) -> Reading:
    """The backbone of each bundle, run over the files that it was trained on."""
    asked = finished.finetuned or {}
    data = Path(source_path(asked["data"]))
    options = {name: asked[name] for name in ("all_files", "image_fps") if name in asked}

    @contextmanager
    def embedded(bundle: Bundle, ids: Sequence[str]) -> Iterator[Sequence[Bank]]:
        found = find_sources(data, banked, ids, **options)
        with ExitStack() as stack:
            with display.progress(len(found), 0, doing="embedding anew") as show:
                anew = rescoring.embedded_anew(bundle, found, banked, device=device, on_progress=show, typed=typed)
                opened = stack.enter_context(anew)
            yield [opened]

    return embedded


def _own(
    display: Display,
    config: EvaluateConfig,
    finished: Recorded,
    banks: list[Bank],
    device: torch.device,
    reading: Reading,
) -> int:
    """The run's own videos: those held out, by the heads that scored them then, and held against what they said.

    Targets and groups are those of the run's banks; `reading` opens what a bundle reads of some videos.
    """
    given = ("target", "targets", "segments", "frame_values")
    if any(getattr(config, name) is not None for name in given):
        raise UserError("The run's own videos keep their own targets; give targets beside another BANK only.")
    asked = finished.config["config"]
    targets = as_asked(asked, banks[0])
    lost = [video for video in finished.tested if video not in targets.values or any(video not in b for b in banks)]
    if lost:
        raise UserError(f"{len(lost)} held-out videos are gone or have no target any more, e.g. {lost[0]}.")
    parts = PARTS if config.split == "all" else PARTS[-1:]
    largest, changed = 0.0, 0
    first: dict[str, HeldOut] = {}
    for seed in range(asked["seeds"]):
        said: dict[str, list[HeldOut]] = {part: [] for part in parts}
        for fold in finished.folds:
            bundle = load_bundle(runs.fold_folder(config.run, seed, fold.name))
            known = rescoring.in_terms_of(bundle, targets)
            wanted = {part: [video for video in getattr(fold, part) if video in known.values] for part in parts}
            every = [video for ids in wanted.values() for video in ids]
            with reading(bundle, every) as read, display.busy(f"scoring fold {fold.name}"):
                sequences, _ = load_for(bundle, read, every)
                for part, ids in wanted.items():
                    if ids:
                        held = hold_out(bundle, sequences, known, ids, fold=fold.name, device=device)
                        said[part].append(held)
        again = {part: joined(held) for part, held in said.items()}
        difference, others = rescoring.largest_difference(
            finished.task, again["test"], *recorded.tables(finished.folder, finished.task, seed)
        )
        largest, changed = max(largest, difference), changed + others
        first = first or again
    count = counted(len(first["test"].ids), "held-out video")
    seeds = f"; the first of {asked['seeds']} seeds" if asked["seeds"] > 1 else ""
    display.field("Run", f"{config.run}: {count}, {finished.results['split']}{seeds}")
    groups = _groups(asked, banks[0], first["test"].ids)
    content = _show(display, finished, first["test"], groups)
    if len(parts) > 1:
        content["parts"] = _show_parts(display, finished, first)
    content |= {"largest_difference": largest, "changed_predictions": changed}
    _tell(content)
    if config.json is not None:
        write_json(config.json, content)
    same = largest <= TOLERANCE
    display.field(
        "As before" if same else "DIFFERENT",
        f"largest difference from predictions.csv {largest:.2g} (up to {TOLERANCE:g} is rounding), "
        f"{counted(changed, 'prediction')} changed{', all seeds' if seeds else ''}",
    )
    return OK if same else DIFFERENT


def _other(
    display: Display, config: EvaluateConfig, finished: Recorded, banks: list[Bank], device: torch.device
) -> int:
    """Videos of other banks by the final head, without those that it was trained on."""
    bundle = load_bundle(config.run)
    asked = dict(finished.config["config"])
    given = {name: getattr(config, name) for name in ("targets", "segments", "frame_values")}
    if any(given.values()):
        asked |= {name: None if path is None else str(path) for name, path in given.items()} | {"target": None}
    if config.target is not None:
        asked["target"] = config.target
    targets = rescoring.in_terms_of(bundle, as_asked(asked, banks[0]))
    notes = list(targets.notes)
    ids = [video for video in banks[0] if video in targets.values]
    if config.split == "test":
        ids = _tested(asked, banks[0], ids)
    same, spans = seen_in_training(bundle, banks[0])
    fresh = [video for video in ids if video not in set(same)]
    if len(fresh) < len(ids):
        example = next(video for video in ids if video in set(same))
        notes.append(f"videos that the head was trained on, left out: {len(ids) - len(fresh)}, e.g. {example}")
    if not fresh:
        raise UserError(
            f"The head was trained on all {len(ids)} videos of {banks[0].path} that have a target, so they say nothing "
            f"new; `framebank evaluate {config.run}` scores what each fold held out."
        )
    if others := [video for video in fresh if video in set(spans)]:
        notes.append(f"spans of files of which the head was trained on others: {len(others)}, e.g. {others[0]}")
    with display.busy("scoring"):
        sequences, more = load_for(bundle, banks, fresh)
        held = hold_out(bundle, sequences, targets, sequences[0].ids, fold="new", device=device)
    for note in [*notes, *more]:
        display.field("Note", note)
    display.field("Bank", f"{', '.join(str(bank.path) for bank in banks)}: {counted(len(held.ids), 'video')}")
    content = _show(display, finished, held, _groups(asked, banks[0], held.ids))
    content["left_out"] = len(ids) - len(fresh)
    _tell(content)
    if config.json is not None:
        write_json(config.json, content)
    return OK


def _tell(content: dict[str, Any]) -> None:
    events.tell("result", **{name: value for name, value in content.items() if name not in ("per_class", "parts")})


def _tested(asked: dict[str, Any], bank: Bank, ids: Sequence[str]) -> list[str]:
    """Those of the videos that the bank's split column calls its test part."""
    column = asked["split_column"]
    if column in bank.catalog.columns:
        parts = dict(zip(bank.catalog["id"], bank.catalog[column].astype(str).map(splits.part_named), strict=True))
        if tested := [video for video in ids if parts[video] == "test"]:
            return tested
    raise UserError(f"No video of {bank.path} is called test in its column {column!r}; leave --split out to score all.")


def _groups(asked: dict[str, Any], bank: Bank, ids: Sequence[str]) -> list[str] | None:
    """The group of each video, by the column that the run took its own from."""
    column = asked["group_column"]
    if column == "none" or column not in bank.catalog.columns:
        return None
    catalog = bank.catalog.set_index("id")
    groups, _ = splits.groups_from(ids, [str(catalog.at[video, column]) for video in ids])
    return None if groups is None else [groups[video] for video in ids]


def _show(display: Display, finished: Recorded, held: HeldOut, groups: list[str] | None) -> dict[str, Any]:
    """Print the metrics and the table of classes; returns them for JSON."""
    task = finished.task
    metrics = metrics_of(task, held)
    interval = bootstrap(score_rows(task, held), groups, len(held.ids)).ends
    unit = "videos" if groups is None else f"{len(set(groups))} groups"
    display.line()
    width = max(len(name) for name in metrics)
    for name in sorted(metrics, key=lambda name: name != task.headline):
        words = (
            f"  {interval_words(interval)} (95 %, bootstrap of {unit})" if name == task.headline and interval else ""
        )
        display.line(f"  {name.replace('_', ' '):<{width}}  {number(metrics[name])}{words}")
    classes = class_table(task, held)
    if classes:
        display.line()
        names = max(5, *(len(row["label"]) for row in classes[:_SHOWN_CLASSES]))
        display.line(f"  {'class':<{names}}  {'number':>7}  precision  recall     F1")
        for row in classes[:_SHOWN_CLASSES]:
            display.line(
                f"  {row['label']:<{names}}  {row['support']:>7,}  {row['precision']:>9.3f}  {row['recall']:>6.3f}"
                f"  {row['f1']:>5.3f}"
            )
        if len(classes) > _SHOWN_CLASSES:
            display.line(f"  … and {len(classes) - _SHOWN_CLASSES} more classes (--json FILE has them all)")
    display.line()
    return {
        "run": str(finished.folder),
        "videos": len(held.ids),
        "headline": task.headline,
        "score": metrics[task.headline],
        "interval": interval,
        "resampled": "videos" if groups is None else "groups",
        "metrics": metrics,
        "per_class": classes,
    }


def _show_parts(display: Display, finished: Recorded, said: dict[str, HeldOut]) -> dict[str, Any]:
    """How the heads do on what trained them, on what chose them and on what they had never seen."""
    task = finished.task
    content = {}
    for part, held in said.items():
        if held.ids:
            content[part] = metrics_of(task, held)
            value = number(content[part][task.headline])
            display.field(
                part.capitalize(), f"{task.headline.replace('_', ' ')} {value} on {counted(len(held.ids), 'video')}"
            )
    display.line()
    return content
