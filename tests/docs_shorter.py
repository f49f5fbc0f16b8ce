"""`framebank` as the examples of the documentation call it: with less to compute where they leave it open. What is made
shorter, and how, is said in `docs_sandbox`.
"""

import sys
from functools import partial
from itertools import pairwise

SHORTER = {
    "train-head": {"--epochs": "1"},
    "finetune": {"--epochs": "1"},
    "bench extract": {"--frames": "20", "--image-size": "64", "--rounds": "1"},
    "bench heads": {"--epochs": "1"},
    "bench finetune": {"--epochs": "1", "--videos": "4"},
}
AT_MOST = {"--epochs": 8, "--workers": 2}
OF_NETWORKS = {"extract", "finetune"}
OF_ONE_SIZE = {"lip-vggm", "slow-fusion"}  # recipes


def shortened(words: list[str]) -> list[str]:
    """The arguments of `framebank`, with less to compute where they leave it open: see above."""
    calls = [" ".join(words[:number]) for number in (1, 2)]
    if {"--help", "-h"} & set(words):
        return words
    given = dict(pairwise(words))
    more = {option: value for call in calls for option, value in SHORTER.get(call, {}).items() if option not in given}
    own_size = (
        {"--head", "--image-size"} & set(words)
        or given.get("--recipe") in OF_ONE_SIZE
        or ":" in given.get("--backbone", "")
        or "runs/" in given.get("--weights", "")
    )
    if calls[0] in OF_NETWORKS and not own_size:
        more["--image-size"] = "64"
    words = [
        str(min(int(word), AT_MOST[before])) if before in AT_MOST else word for before, word in pairwise(["", *words])
    ]
    return [*words, *(word for pair in more.items() for word in pair)]


def shorten_demo() -> None:
    """Let the demo of this process make fewer clips: the least that have each class in every part of the split."""
    from pipeline.samples import make_samples
    from stages import demo

    demo.make_samples = partial(make_samples, clips_per_class=10)


if __name__ == "__main__":  # `framebank` in a shell
    from stages.cli import main

    if sys.argv[1:] == ["demo"]:
        shorten_demo()
    main(shortened(sys.argv[1:]), prog_name="framebank")
