"""The whole walk on clips made here: no network, no data of your own. Puts the stages in a row, as `make` does."""

import sys
from pathlib import Path

from pipeline.samples import make_samples
from stages import describe, extract
from stages.console import Display


def run(folder: Path) -> int:
    """Make the sample clips in `folder`/samples, bank them in `folder`/samples.h5 and show the bank.

    Returns:
        the exit status of the extraction.
    """
    display = Display()
    data, bank = folder / "samples", folder / "samples.h5"
    display.line("1. Sample clips: a disc that swells or shrinks on a ground whose hue runs forwards or backwards.")
    clips = make_samples(data)
    display.field("Clips", f"{len(clips)} in {data}")
    display.line()
    display.line("2. Extraction: the CNN runs once over every frame (seeded random weights, so nothing is downloaded).")
    status = extract.run(
        extract.ExtractConfig(data=data, out=bank, backbone="squeezenet1_1", weights="random", image_size=64)
    )
    display.line()
    display.line("3. The bank:")
    describe.overview(bank)
    display.line(f"Open it with any HDF5 tool (h5ls -r {bank}), or look at one video:")
    command = sys.argv[0] if Path(sys.argv[0]).name == "framebank" else "framebank"
    display.line(f"  {command} describe {bank} {clips['path'].iloc[0].rsplit('.', 1)[0]}")
    return status
