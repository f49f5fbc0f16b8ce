"""What a bench says of the machine, and of the versions of what it measured: without them its figures say little."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.extraction import cores

_PACKAGES = ("framebank", "torch", "torchvision", "av", "numpy", "h5py", "pillow", "dask", "distributed")
_SYSTEM_CPUS = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def machine() -> dict[str, Any]:
    """The machine, for JSON: sizes in bytes, clocks in MHz; None where it does not say."""
    return {
        "system": platform.platform(),
        "cpu": (_cpu_fields("model name") or [platform.processor() or platform.machine()])[0],
        "cores": cores(),
        "clock_max_mhz": _clock_of("cpuinfo_max_freq"),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "threads_asked": os.environ.get("OMP_NUM_THREADS"),
    }


def clock_mhz() -> float | None:
    """How fast the cores run at this moment, on average, in MHz; None where the machine does not say."""
    clocks = [float(value) for value in _cpu_fields("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else _clock_of("scaling_cur_freq")


def versions() -> dict[str, str]:
    """Of Python, of framebank (and its commit, where it runs from a checkout) and of what it computes with."""
    found = {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
    commit = _commit()
    return found | ({"commit": commit} if commit else {})


def machine_words(known: dict[str, Any]) -> str:
    """What `machine` found in one line, as "AMD EPYC, 2 cores, 2,596 MHz, 8 GiB, no GPU"."""
    now = clock_mhz()
    clock = f", {now:,.0f} MHz" if now else ""
    gpus = ", ".join(known["gpus"]) or "no GPU"
    return f"{known['cpu']}, {known['cores']} cores{clock}, {known['memory_bytes'] / 2**30:.0f} GiB, {gpus}"


def _cpu_fields(name: str) -> list[str]:
    """The values of one field of Linux' list of cores, one for each core."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name]


def _clock_of(name: str) -> float | None:
    try:
        return int((_SYSTEM_CPUS / name).read_text()) / 1000
    except (OSError, ValueError):
        return None


def _commit() -> str:
    """The commit of the checkout that this file lies in, with a + where files differ from it; "" without one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        words = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def pss_bytes(process: int) -> int | None:
    """Bytes of memory that a process and its descendants hold at this moment, each shared page counted once (PSS).

    None where the system does not say, as only Linux does.
    """
    if sys.platform != "linux":
        return None
    total, todo = 0, [process]
    while todo:
        folder = Path("/proc") / str(todo.pop())
        try:
            rollup = (folder / "smaps_rollup").read_text()
            for children in folder.glob("task/*/children"):
                todo += [int(child) for child in children.read_text().split()]
        except OSError:  # it has ended
            continue
        total += sum(1024 * int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total or None
