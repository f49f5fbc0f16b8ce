"""framebank in Python: what its commands do, as functions that return what came of it.

    import framebank

    bank = framebank.extract("my_videos", "bank.h5")
    run = framebank.train_head(bank, "runs/lstm", folds=5)
    print(run.score, run.interval)
    print(framebank.load_bundle(run).predict("new.mp4").label)

Keyword arguments are the options of the commands, with `_` for `-`: `--test-share 0.3` is `test_share=0.3`,
`--no-centre` is `centre=False`, and what may be given several times is a list. They mean, allow and default to the
same, since the commands' own parser reads them. What cannot be done as asked raises `UserError`, whose message is the
command's; files and disks that fail raise `OSError`, as everywhere in Python. Nothing is printed unless
`progress=True`, but for a line on standard error where videos could not be read.

What is in `__all__` is kept stable by semantic versioning; everything else, `pipeline` and `stages` too, may change
with any version. `import framebank` loads nothing heavy: torch comes with the first name that needs it.

A call leaves torch's threads and random generators and the handlers of signals as they were. Three things stay, in this
process alone: on Linux the C library's allocator keeps memory that was used once (it is not returned between batches),
where optical flow was measured OpenCV is left with one thread, and Pillow no longer warns of large images.

The files, of which each imports only from those above it:

    asking              keyword arguments -> the options of a command, as its own parser reads them
    extract_options     the options of each command as types: tests/python_options.py writes these files
    train_head_options
    finetune_options
    evaluate_options
    predict_options
    datasets            SequenceDataset: sequences with their targets, and batches of them, packed
    banks               Bank: a mapping of arrays; as dask arrays, xarray, and a data set of torch
    runs                Run and Evaluation: what came of training, and of scoring once more
    prediction          Predictor: a finished run that predicts videos, or features
    work                extract, train_head, finetune, evaluate, report, explore
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framebank.banks import Bank
    from framebank.datasets import SequenceDataset
    from framebank.prediction import Prediction, Predictions, Predictor, load_bundle, predict
    from framebank.runs import Evaluation, Run
    from framebank.work import evaluate, explore, extract, finetune, report, train_head
    from pipeline.errors import UserError

    __version__: str

__all__ = [
    "Bank",
    "Evaluation",
    "Prediction",
    "Predictions",
    "Predictor",
    "Run",
    "SequenceDataset",
    "UserError",
    "__version__",
    "evaluate",
    "explore",
    "extract",
    "finetune",
    "load_bundle",
    "predict",
    "report",
    "train_head",
]
_HOMES = {
    "framebank.banks": ("Bank",),
    "framebank.datasets": ("SequenceDataset",),
    "framebank.prediction": ("Prediction", "Predictions", "Predictor", "load_bundle", "predict"),
    "framebank.runs": ("Evaluation", "Run"),
    "framebank.work": ("evaluate", "explore", "extract", "finetune", "report", "train_head"),
    "pipeline.errors": ("UserError",),
}


def __getattr__(name: str) -> Any:
    """What a name stands for, loaded when it is asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("framebank")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'framebank' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
