"""The allocator keeps what it has: in a process of its own, the page faults of forward passes with and without."""

import os
import platform
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

FORWARDS = """
import resource
import torch
from pipeline.backbone import load_backbone
from pipeline.encoder import in_channels_last, make_encoder, placed
from pipeline.preprocessing import normalise

torch.set_num_threads(1)
cpu, batch = torch.device("cpu"), 4
backbone = load_backbone("squeezenet1_1", weights="random")
rows = torch.zeros(batch, *backbone.input_shape, dtype=torch.uint8)
module = placed(backbone.module, cpu, torch.float32)
plain = torch.inference_mode()(lambda rows: module(in_channels_last(normalise(backbone.preprocessing, rows))))


def faults(forward):
    for _ in range(2):
        forward(rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        forward(rows)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


print(faults(plain))
encode, _ = make_encoder(load_backbone("squeezenet1_1", weights="random"), cpu, "fp32", batch)
print(faults(lambda rows: encode(rows)()))
"""
KEEP = "from pipeline.allocator import keep_memory; print(keep_memory(), keep_memory())"

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def said(*arguments: str, **settings: str) -> str:
    """What Python prints, run with these arguments and these settings of the allocator alone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment |= settings
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_glibc_does_as_it_is_told() -> None:
    assert said("-c", KEEP) == "True True"


def test_an_encoder_on_a_cpu_takes_the_same_memory_for_every_batch() -> None:
    # As Dask sets it in its workers; without it glibc moves its thresholds as it goes, and may keep memory by chance.
    plain, kept = map(int, said("-c", FORWARDS, MALLOC_TRIM_THRESHOLD_="65536").split())
    assert plain > 1000  # else there is nothing to save
    assert 3 * kept < plain
