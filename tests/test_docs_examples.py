"""Every command and every Python block of README.md and docs/ is parsed; those that are not marked otherwise are run.

Run means: in order, page by page, each page in a copy of a folder that holds what the pages speak of
(`tests/docs_sandbox.py`), with the exit status that the page states.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs_examples import PAGES, RUNNABLE, blocks_of, check, commands_of, name_of, program_of, simple_commands
from tests.docs_sandbox import environment_of, make_sandbox, run_page
from tests.docs_shorter import shorten_demo

WITH_EXAMPLES = [page for page in PAGES if blocks_of(page)]
RUN = [page for page in WITH_EXAMPLES if any(block.reason is None for block in blocks_of(page))]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name_of)
def test_examples_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks_of(page):
        if block.title:
            Path(block.title).write_text(block.text, "utf-8")
        if block.language == "python":
            compile(block.text, f"{name_of(page)}:{block.line}", "exec")
            continue
        for command in commands_of(block):
            for words in simple_commands(command.text):
                try:
                    check(words)
                except Exception as error:
                    raise AssertionError(f"{command.where}: {command.text}\n{error}") from error


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_programs_that_the_sandbox_lacks_are_marked(page: Path) -> None:
    for block in blocks_of(page):
        for command in commands_of(block) if block.language == "sh" and block.reason is None else ():
            called = {program_of(words) for words in simple_commands(command.text)}
            assert called <= RUNNABLE, f"{command.where}: mark the block as not run, and say why"


@pytest.mark.parametrize(
    "line",
    [
        "framebank extrakt my_videos",
        "framebank extract my_videos --out b.h5 --strides 2",
        "framebank extract my_videos",
        "framebank extract my_videos --out b.h5 --backbone resnet51",
        "framebank train-head b.h5 --out r --cell rnn",
        "framebank train-head b.h5 --out r --recipe lrnc",
        "framebank recipes shows lrcn",
        "framebank bench extract my_videos --rounds few",
        "OMP_NUM_THREADS=1 framebank describe b.h5 --fine",
        "torchrun --nproc-per-node 4 -m stages.cli finetune my_videos",
        "make exctract DATA=x",
        "make extract DATAS=x",
        "pip install 'framebank[flows]'",
    ],
)
def test_what_does_not_exist_does_not_parse(line: str) -> None:
    (words,) = simple_commands(line)
    with pytest.raises((Exception, AssertionError)):  # of click, framebank or this check
        check(words)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the pages begin with, and named weights without a network."""
    from torchvision.models import WeightsEnum

    from stages import demo
    from tests.docs_sandbox_weights import random_url

    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_of(folder).items():
            patch.setenv(name, value)
        patch.setattr(WeightsEnum, "url", property(random_url))
        patch.setattr(demo, "make_samples", demo.make_samples)  # put back afterwards
        shorten_demo()
        make_sandbox(folder)
        yield folder
    shutil.rmtree(folder)  # with the weights of every network that the pages name


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_examples_run(page: Path, sandbox: Path, tmp_path: Path) -> None:
    shutil.copytree(sandbox, tmp_path / "page", ignore=shutil.ignore_patterns("torch"))
    run_page(page, tmp_path / "page")
    shutil.rmtree(tmp_path / "page")
