"""The whole walk on clips made here, up to pages to look at: no network, no data of your own. Puts the stages in a row,
as `make` does.
"""

import sys
from pathlib import Path

from pipeline.samples import make_samples
from stages import describe, evaluate, explore, extract, finetune, predict, report, train_head
from stages.console import Display


def run(folder: Path) -> int:
    """Make clips in `folder`/samples, bank them in `folder`/samples.h5, train a head in `folder`/samples-head, use it,
    and train it further together with the network in `folder`/samples-finetuned. Write a page of each stage.

    Returns:
        the exit status of the first stage that did not end well, else 0.
    """
    display = Display()
    data, bank, head = folder / "samples", folder / "samples.h5", folder / "samples-head"
    finetuned = folder / "samples-finetuned"
    display.line("1. Sample clips: a disc that swells or shrinks on a ground whose hue runs forwards or backwards.")
    with display.busy("writing clips"):
        clips = make_samples(data)
    display.field("Clips", f"{len(clips)} in {data}")
    display.line()
    display.line("2. Extraction: the CNN runs once over every frame (seeded random weights, so nothing is downloaded).")
    status = extract.run(
        extract.ExtractConfig(data=data, out=bank, backbone="squeezenet1_1", weights="random", image_size=64)
    )
    if status:
        return status
    display.line()
    display.line("3. The bank:")
    describe.overview(bank)
    display.line()
    display.line("4. A head on the bank. The classes differ in the order of their frames alone: what looks at single")
    display.line("   frames, or pools them without order, can only guess; a recurrent state sees the order.")
    status = train_head.run(train_head.TrainHeadConfig(banks=(bank,), out=head))
    if status:
        return status
    display.line()
    display.line("5. The same held-out clips once more, from what the run folder holds:")
    status = evaluate.run(evaluate.EvaluateConfig(run=head))
    display.line()
    display.line("6. One clip from its file: backbone and head together.")
    clip = clips.loc[clips["split"] == "test", "path"].iloc[0]
    status = status or predict.run(predict.PredictConfig(run=head, videos=(data / clip,)))
    if status:
        return status
    display.line()
    display.line("7. Fine-tuning: the last two blocks of the CNN are unfrozen and trained with the head, end to end.")
    display.line("   What comes before them never changes, so it is computed once. (The head leaves little to gain on")
    display.line("   these clips: this shows how it is done.)")
    status = finetune.run(finetune.FinetuneConfig(data=data, out=finetuned, head=head))
    if status:
        return status
    display.line()
    display.line("8. A page for each of the three: the bank, the head, and the head beside the network tuned with it.")
    pages = (bank.with_suffix(".html"), head / "report.html", folder / "samples-comparison.html")
    explore.run(explore.ExploreConfig(bank=bank, out=pages[0]))
    report.run(report.ReportConfig(runs=(head,), out=pages[1]))
    report.run(report.ReportConfig(runs=(head, finetuned), out=pages[2]))
    display.line()
    command = sys.argv[0] if Path(sys.argv[0]).name == "framebank" else "framebank"
    display.line(f"Open the bank with any HDF5 tool (h5ls -r {bank}), or see what it holds of one video:")
    display.line(f"  {command} describe {bank} {clip.rsplit('.', 1)[0]}")
    display.line("Your own videos go the same way, beginning with:")
    display.line(f"  {command} extract my_videos --out bank.h5")
    display.line(f"Open in a browser: {', '.join(map(str, pages))}")
    return status
