"""What `framebank bench extract` says: rates, the bound and how much of it is reached, and what a naive loop does."""

from collections.abc import Mapping
from typing import Any

from stages.bench_naive import COSINE
from stages.console import Display, counted, megabytes, row_unit
from stages.machine import machine_words


def show(display: Display, result: Mapping[str, Any]) -> None:
    """All figures but those of single rounds; `result` as it is written as JSON."""
    median, compute = result["median"], result["compute"]
    unit = row_unit(result["recipe"])
    display.field(
        "Videos",
        f"{result['videos_measured']:,} of {counted(result['videos'], 'video')} in {result['asked']['data']}, "
        f"{counted(result['rows'], unit)}",
    )
    display.field("Network", f"{result['backbone']}, layer {result['layer']}, {result['weights']}")
    display.field(
        "Computing",
        f"{result['recipe']['precision']} on {compute['device']}{', compiled' * compute.get('compiled', False)}, "
        f"batches of {compute['batch_size']}, "
        f"{counted(result['lanes'], 'lane')} of {counted(result['threads'], 'thread')}",
    )
    display.field("Machine", machine_words(result["machine"]))
    display.field("Measured", f"{counted(len(result['rounds']), 'round')} of everything in turn; medians")
    display.line()
    display.line(f"{'':<34}{unit + 's/s':>10}")
    for name, rate in median["rates"].items():
        display.line(f"{name:<34}{rate:>10,.1f}")
    for size, naive in median.get("naive", {}).items():
        display.line(f"{_naive_name(size):<34}{naive['rate']:>10,.1f}")
    display.line()
    on_cpu = compute["device"] == "cpu"
    how = "if no lane ever waited" if on_cpu else "of the slowest stage"
    display.field(
        "Bound",
        f"{median['bound']:,.1f} {unit}s/s {how}; {median['reached']:.3f} of it reached; {median['limit']} "
        f"{'takes most' if on_cpu else 'limits'}",
    )
    command = median["command"]
    display.field(
        "Command",
        f"the first {unit} after {command['first_seconds']:.1f} s, all in {command['seconds']:.1f} s; "
        f"memory: {_memory(command)}",
    )
    for size, naive in median.get("naive", {}).items():
        scaled = (
            f", scaled up from {counted(round(naive['frames']), 'frame')}" if naive["frames"] < result["rows"] else ""
        )
        display.field(
            "Naive",
            f"{_naive_name(size)}: framebank is {naive['times_as_fast']:.2f} times as fast, "
            f"{naive['times_as_fast_with_start']:.2f} with start-up{scaled}; its first frame after "
            f"{naive['first_seconds']:.1f} s, memory: {_memory(naive)}",
        )
    if not result["wrong"]:
        cosines = [naive["cosine"] for each in result["rounds"] for naive in each.get("naive", {}).values()]
        beside = f"; cosine with the naive loop's at least {min(cosines):.6f} ({COSINE})" if cosines else ""
        display.field(
            "Agreement",
            "bit for bit: in another order, in other batches, by the forward alone, in a process of its own" + beside,
        )


def _naive_name(size: int) -> str:
    return f"naive loop, {'frame by frame' if size == 1 else f'batches of {size}'}"


def _memory(process: Mapping[str, Any]) -> str:
    peak = process["peak_bytes"]
    return "not measured" if peak is None else f"at most {megabytes(peak)}"
