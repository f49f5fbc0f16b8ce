"""A run -> files that predict without framebank: its backbones and its head as ONNX or as exported programs of torch.

What is written has been run: on frames of real videos and on features of the bank, beside the originals
(`pipeline.export_check`). Where it differs by more than rounding, nothing is kept.
"""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from pipeline import export_check, runs
from pipeline.alike import Alike, bank_alike, load_alike
from pipeline.bank import Bank
from pipeline.bundles import Bundle, load_bundle
from pipeline.errors import UserError
from pipeline.export_check import Found
from pipeline.exported_models import CELLS, check_packages, open_model, write_model
from pipeline.extraction import flow_of
from pipeline.features import records
from pipeline.gathering import find_all
from pipeline.ids import readable
from pipeline.plain_models import PlainBackbone, PlainBundle, shapes_of
from pipeline.sources import source_path
from pipeline.writing import write_json
from stages import export_model_words as words
from stages.console import Display

MODEL = "model.json"
_CPU = torch.device("cpu")
_EXAMPLE = 5  # steps of the sequence that a head is traced with; a second axis has one more, and so on


@dataclass(frozen=True)
class ExportModelConfig:
    """Everything that `framebank export-model` can be told; the defaults are those of the command."""

    run: Path
    out: Path
    to: str = "onnx"
    check: tuple[Path, ...] = ()
    weights: tuple[str, ...] = ()
    backbone: str | None = None
    quiet: bool = False


def run(config: ExportModelConfig) -> int:
    """Export a run's models and check them.

    Returns:
        the exit status, 0.

    Raises:
        UserError: it cannot be exported, or what was exported is not the same.
    """
    display = Display(quiet=config.quiet)
    bundle = load_bundle(config.run)
    check_packages(config.to)
    _refuse(bundle, config.run)
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise UserError(f"{config.out} is there already; give another --out, or remove it.")
    videos = find_all(config.check)[0] if config.check else None
    with display.busy("loading the network"):
        loaded = load_alike(bundle, config.weights, device=_CPU, typed=config.backbone)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.out.parent, prefix=".framebank-") as folder:
        made = Path(folder) / "made"
        made.mkdir()
        described = words.describe(bundle, loaded, config.to)
        with display.busy(f"exporting to {config.to}"):
            _write(made, bundle, loaded, config.to, described)
        for line in words.files(described, made):
            display.field("Written", line)
        found, notes = _checked(config, bundle, loaded, made, described, videos, display)
        for name, text in words.checks(found, bundle, loaded):
            display.field(name, text)
        for note in notes:
            display.field("Note", note)
        write_json(made / MODEL, described | {"checked": words.checked(found, config.to)})
        made.replace(config.out)
    display.field("Model", f"{config.out}: {MODEL} says what goes in and what comes out")
    return 0


def _refuse(bundle: Bundle, run: Path) -> None:
    """UserError for what a graph of one sequence cannot give."""
    for member in bundle.members:
        for made in member.banks:
            if views := made["config"]["recipe"].get("views"):
                raise UserError(
                    f"The head in {run} averages over {views['count']} views of each video, and an exported one reads "
                    "a single sequence: train a head on a bank without --views."
                )
    if bundle.resampling is not None:
        raise UserError(
            f"The head in {run} reads banks with times of their own (--resample), and an exported one takes rows that "
            "lie side by side already: bank the videos alike, or train a head each (--fuse mean)."
        )
    if bundle.selection.test_crops > 1:
        raise UserError(
            f"The head in {run} averages over {bundle.selection.test_crops} draws of frames (--test-crops), and an "
            "exported one reads a single sequence: train it without."
        )


def _write(made: Path, bundle: Bundle, loaded: Sequence[Alike], to: str, described: words.Described) -> None:
    """The graphs, by the names that their description has for them."""
    for alike, told in zip(loaded, described["backbones"], strict=True):
        rows = torch.from_numpy(export_check.noise(alike.backbone.input_shape, 2))
        write_model(
            PlainBackbone(alike.backbone),
            made / told["file"],
            to,
            inputs={told["input"]["name"]: (rows, told["input"]["shape"][0])},
            output=told["output"]["name"],
            what=f"The network {alike.backbone.name} at {alike.backbone.layer}",
        )
    told = described["head"]
    axes = list(dict.fromkeys(each["shape"][0] for each in told["inputs"]))
    shapes = shapes_of(bundle)
    write_model(
        PlainBundle(bundle, CELLS[to]),
        made / told["file"],
        to,
        inputs={
            each["name"]: (torch.zeros(_EXAMPLE + axes.index(each["shape"][0]), *shape), each["shape"][0])
            for each, shape in zip(told["inputs"], shapes, strict=True)
        },
        output=told["output"]["name"],
        what="The head",
    )


def _checked(
    config: ExportModelConfig,
    bundle: Bundle,
    loaded: Sequence[Alike],
    made: Path,
    described: words.Described,
    videos: pd.DataFrame | None,
    display: Display,
) -> tuple[Found, list[str]]:
    """Run what was exported: on videos that are given or banked, on features alone, or on noise, whatever is there."""
    backbones = [open_model(made / told["file"], config.to) for told in described["backbones"]]
    name = described["head"]["file"]
    head = open_model(made / name, config.to)
    found = Found()
    with _originals(config, bundle, loaded, videos, display) as banks, display.busy("checking"):
        shown = export_check.some_videos(banks, with_files=True)
        for video in shown:
            features, banked = [], []
            for alike, bank, run, told in zip(loaded, banks, backbones, described["backbones"], strict=True):
                rows = export_check.rows_of(bank, video, alike.backbone, flow_of(alike.made))
                computed = export_check.check_backbone(run, alike.backbone, rows, found, told["file"])
                seconds = bank.timestamps(video)
                features.append(export_check.chosen(bundle, computed, seconds))
                banked.append(export_check.chosen(bundle, export_check.features_of(bank, video), seconds))
            export_check.check_head(head, bundle, banked, found, name)
            exact = all(alike.recipe["precision"] == "fp32" for alike in loaded)
            export_check.check_joint(head, bundle, features, banked, found, exact=exact, video=video)
        if shown:
            return found, []
        computed_each = [
            export_check.check_backbone(
                run, alike.backbone, export_check.noise(alike.backbone.input_shape), found, file
            )
            for alike, run, file in zip(
                loaded, backbones, (told["file"] for told in described["backbones"]), strict=True
            )
        ]
        ids = export_check.some_videos(banks, with_files=False)
        for video in ids:
            features = [
                export_check.chosen(bundle, export_check.features_of(bank, video), bank.timestamps(video))
                for bank in banks
            ]
            export_check.check_head(head, bundle, features, found, name)
        if not ids:
            export_check.check_head(head, bundle, computed_each, found, name)
    gone = "the banked videos are" if ids else "the bank of this run and its videos are"
    seen = "the backbone was" if ids else "backbone and head were"
    return found, [f"{gone} not where they were, so {seen} checked on noise; --check VIDEO takes others"]


@contextmanager
def _originals(
    config: ExportModelConfig, bundle: Bundle, loaded: Sequence[Alike], videos: pd.DataFrame | None, display: Display
) -> Iterator[list[Bank]]:
    """For each backbone a bank that it made: the run's own, or one of the videos that are given, gone afterwards."""
    with ExitStack() as stack:
        banks = _own_banks(config.run, stack)
        if videos is None and [bank.fingerprint for bank in banks] == [alike.fingerprint for alike in loaded]:
            yield banks
            return
        if videos is None:  # a fine-tuned run: no bank holds what its backbone makes of the videos
            ids = export_check.some_videos(banks, with_files=True)
            paths = [Path(source_path(str(banks[0].catalog.set_index("id").at[video, "source"]))) for video in ids]
            videos = find_all(paths)[0] if paths else None
        if videos is None:
            yield []
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="framebank-")))
        made = []
        for number, alike in enumerate(loaded):
            # of a copy: the encoder changes the network's precision
            network = replace(alike.backbone, module=copy.deepcopy(alike.backbone.module))
            with display.progress(len(videos), 0) as show:
                path = folder / f"{number}.h5"
                if bank_alike(path, videos, replace(alike, backbone=network), device=_CPU, on_progress=show):
                    raise KeyboardInterrupt
            made.append(stack.enter_context(Bank(path)))
            for failed in records(made[-1].failures):
                raise UserError(
                    f"{readable(failed['id'])} cannot be read ({failed['reason']}); give others by --check."
                )
        yield made


def _own_banks(run: Path, stack: ExitStack) -> list[Bank]:
    """The banks that a run was trained on, none where one is gone."""
    if not (run / "config.json").exists():  # a fold, or a bundle by itself
        return []
    paths = [Path(source_path(bank["path"])) for bank in runs.read_config(run)["data"]["banks"]]
    return [stack.enter_context(Bank(path)) for path in paths] if all(path.exists() for path in paths) else []
