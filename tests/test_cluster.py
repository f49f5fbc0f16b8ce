"""Starting and joining a Dask cluster: real schedulers and workers in processes of their own, sharing only a folder."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline import agreement
from pipeline import cluster as clusters
from pipeline.bank import Bank
from pipeline.cluster import await_workers, hosts, joined, names, started
from pipeline.errors import UserError
from stages.console import workers_words
from tests.commands import SETTINGS, extract, framebank, said

ROOT = Path(__file__).resolve().parent.parent
PROC = Path("/proc/self/cwd")  # another folder in each process: a path that is there everywhere, and not shared


@pytest.fixture(autouse=True)
def own_dashboards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tests side by side two might find the same port free."""
    monkeypatch.setattr(clusters, "_free_port", lambda: 0)


def start(*arguments: str, cwd: Path, **environment: str) -> "subprocess.Popen[bytes]":
    """A process group of its own that runs Python, with some variables in its environment."""
    path = os.pathsep.join(filter(None, [environment.pop("PYTHONPATH", ""), str(ROOT)]))
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end(process: "subprocess.Popen[bytes]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def scheduler_at(folder: Path) -> Iterator[Path]:
    """`dask scheduler` in a process of its own; gives its scheduler file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--scheduler-file"]
    process = start("-m", "distributed.cli.dask_scheduler", *options, str(file), cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        yield file
    finally:
        end(process)


@contextmanager
def worker_of(file: Path, cwd: Path, *flags: str, **environment: str) -> Iterator[None]:
    """`dask worker` in a process group of its own, with its own working folder."""
    cwd.mkdir(parents=True, exist_ok=True)
    options = ["--nthreads", "1", "--name", "far", "--local-directory", str(cwd), "--no-dashboard", "--no-nanny"]
    module = ["-m", "distributed.cli.dask_worker", "--scheduler-file", str(file)]
    process = start(*flags, *module, *options, cwd=cwd, **environment)
    try:
        yield
    finally:
        end(process)


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of a scheduler that has one sound worker, both in process groups of their own."""
    folder = tmp_path_factory.mktemp("far")
    with scheduler_at(folder) as file, worker_of(file, folder / "elsewhere"):
        yield file


def test_a_joined_cluster_makes_the_bank_that_one_process_makes(data: Path, out: Path, far: Path) -> None:
    extract(data, out)
    other = out.with_name("joined.h5")
    result = extract(data, other, "--scheduler-file", far)
    assert result.exit_code == 0, result.output
    assert said(result, "Cluster").startswith("1 worker on 1 machine, of tcp://127.0.0.1:")
    assert "dashboard http://127.0.0.1:" in said(result, "Cluster")
    assert said(result, "Banked").startswith("6 videos · 39 frames")
    assert said(result, "Workers").startswith("1 worker: worker far ")
    with Bank(out) as one, Bank(other) as two:
        assert list(one) == list(two)
        assert all(np.array_equal(one[video], two[video]) for video in one)
        columns = [name for name in one.catalog.columns if name != "banked"]
        assert one.catalog[columns].equals(two.catalog[columns])
        assert one.config == two.config
    assert sorted(file.name for file in out.parent.iterdir()) == ["bank.h5", "data", "joined.h5"]


def test_a_scheduler_in_the_environment_is_joined(
    data: Path, out: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joined(scheduler_file=far) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.address)
    result = extract(data, out)
    assert f"of {cluster.address}" in said(result, "Cluster")
    assert "Estimate" in extract(data, out.with_name("dry.h5"), "--dry-run").stdout  # which no cluster does


@pytest.mark.skipif(not PROC.exists(), reason="needs /proc, where one path is another folder in each process")
def test_a_bank_that_is_not_on_shared_storage_is_refused(
    data: Path, far: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = extract(data, PROC / "bank.h5", "--scheduler-file", far)
    assert result.exit_code == 2
    assert "worker far does not see the folder of the bank" in result.stderr
    assert "on storage that all workers share" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


@pytest.mark.skipif(not PROC.exists(), reason="needs /proc, where one path is another folder in each process")
@pytest.mark.parametrize("kind", ["data", "images"])
def test_videos_that_a_worker_does_not_see_are_refused(
    kind: str, data: Path, out: Path, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    for number in range(3):
        file = data.parent / "images" / "one" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(file)
    result = extract(PROC / kind, out, "--scheduler-file", far)
    assert result.exit_code == 2
    assert f"worker far does not see {PROC}/{kind}/" in result.stderr
    assert not out.exists()


def test_a_worker_that_does_not_answer_is_named(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with joined(scheduler_file=far) as cluster:
        await_workers(cluster)
        assert agreement.agreed_computing(cluster, "fp32", None) == ("cpu", "fp32")  # torch is loaded then
        monkeypatch.setattr(agreement, "_ANSWER_SECONDS", 1.0)
        [process] = cluster.client.run(os.getpid).values()
        os.kill(process, signal.SIGSTOP)
        try:
            with pytest.raises(UserError, match=r"Not every worker answers within 1 s; worker far has been silent"):
                agreement.agreed_computing(cluster, "auto", None)
        finally:
            os.kill(process, signal.SIGCONT)
        assert agreement.agreed_computing(cluster, "fp32", None) == ("cpu", "fp32")


LOSING = """
import os, signal, sys
from pathlib import Path
from pipeline import agreement, cluster
from pipeline.errors import UserError
with cluster.joined(scheduler_file=Path(sys.argv[1])) as there:
    cluster.await_workers(there)
    server = there.client.run_on_scheduler(os.getpid)
    for lose in (lambda: agreement._asked(there, os._exit, 1), lambda: os.kill(server, signal.SIGKILL)):
        try:
            lose()
            agreement.check_software(there)
        except UserError as error:
            print(error)
"""


def test_workers_and_then_the_scheduler_lost_while_it_checks_are_a_line_each(tmp_path: Path) -> None:
    with scheduler_at(tmp_path) as file, worker_of(file, tmp_path / "w"):
        done = subprocess.run(
            [sys.executable, "-c", LOSING, str(file)], cwd=ROOT, capture_output=True, text=True, check=True
        )
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.endswith("answers any more. Nothing was begun; run the command again.")
    assert "is gone" in second or "does not answer any more" in second


def test_another_version_on_a_worker_is_refused(data: Path, out: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    (older / "torch-1.0.dist-info").mkdir(parents=True)
    (older / "torch-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    with scheduler_at(tmp_path) as file, worker_of(file, tmp_path / "w", PYTHONPATH=str(older)):
        result = extract(data, out, "--scheduler-file", file)
    assert result.exit_code == 2
    here = metadata.version("torch").partition("+")[0]
    assert f"worker far has torch 1.0, and here it is {here}; the workers need the same environment" in result.stderr
    assert not out.exists()


def test_a_worker_without_framebank_is_refused(data: Path, out: Path, tmp_path: Path) -> None:
    # What is on PYTHONPATH is seen, but not the .pth files in it, by which this repository is installed.
    packages = str(Path(np.__file__).parent.parent)
    with scheduler_at(tmp_path) as file:
        process = subprocess.Popen(
            [sys.executable, "-S", "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--no-nanny"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": packages},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            result = extract(data, out, "--scheduler-file", file)
        finally:
            end(process)
    assert result.exit_code == 2
    assert "cannot run framebank: " in result.stderr
    assert "No module named 'pipeline'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_scheduler_without_workers_is_refused(
    data: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "_JOIN_SECONDS", 1)
    with scheduler_at(tmp_path) as file:
        result = extract(data, out, "--scheduler-file", file)
    assert result.exit_code == 2
    assert "No worker has joined the scheduler at tcp://127.0.0.1:" in result.stderr
    assert "Start some: dask worker tcp://" in result.stderr


def test_a_scheduler_that_is_not_there_is_named(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_CONNECT_SECONDS", 1)
    result = extract(data, out, "--scheduler", "tcp://127.0.0.1:1")
    assert result.exit_code == 2
    assert "No Dask scheduler answers at tcp://127.0.0.1:1 within 1 s" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scheduler", "nonsense"], "'nonsense' is no scheduler's address"),
        (["--scheduler", "carrier-pigeon://host:1"], "It is of the form tcp://host:8786"),
        (["--scheduler-file", "missing.json"], "`dask scheduler --scheduler-file missing.json` writes it"),
        (["--scheduler-file", __file__], "is no file that `dask scheduler --scheduler-file` has written"),
        (["--scheduler", "tcp://127.0.0.1:1", "--device", "cuda:1"], "cuda:1 names a GPU of one machine"),
        (["--workers", "0"], "0 is not in the range x>=1"),
        (["--workers", "2", "--scheduler", "tcp://h:1"], "--workers and --scheduler exclude one another"),
        (["--scheduler", "tcp://h:1", "--scheduler-file", "f"], "--scheduler and --scheduler-file exclude"),
        (["--stall-limit", "5"], "--stall-limit needs workers"),
        (["--workers", "1", "--stall-limit", "0"], "0.0 is not in the range x>0"),
        (["--workers", "1", "--dry-run"], "--dry-run measures in this process alone; leave --workers out"),
    ],
)
def test_what_cannot_be_meant_is_refused(data: Path, out: Path, options: list[str], words: str) -> None:
    result = extract(data, out, *options)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert not out.exists()


def test_each_worker_of_this_machine_sees_one_gpu_in_turn() -> None:
    local = clusters._Local(["3", "7"], n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    with local, joined(local.scheduler_address) as cluster:
        local.scale(3)
        cluster.client.wait_for_workers(3, timeout=120)
        assert set(names(cluster).values()) == {"worker 0", "worker 1", "worker 2"}
        assert hosts(cluster) == 1
        seen = cluster.client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
        called = names(cluster)
        assert {called[address]: gpu for address, gpu in seen.items()} == {
            "worker 0": "3",
            "worker 1": "7",
            "worker 2": "3",
        }


def test_workers_of_this_machine_share_its_cores_and_outlive_ctrl_c() -> None:
    with started(1, "cpu") as cluster:
        await_workers(cluster)
        [info] = cluster.client.scheduler_info(n_workers=-1)["workers"].values()
        assert info["nthreads"] == clusters.CPU_COUNT
        [process] = cluster.client.run(os.getpid).values()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process, number)
        time.sleep(1)
        assert list(cluster.client.run(os.getpid).values()) == [process]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_worker_that_dies_while_it_starts_is_not_waited_for() -> None:
    with started(1, "cpu") as cluster:
        while not (born := multiprocessing.active_children()):
            time.sleep(0.02)
        born[0].kill()
        with pytest.raises(UserError, match="1 of 1 worker processes died while they started"):
            await_workers(cluster)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a socket that Dask leaves open
def test_the_dashboard_goes_elsewhere_where_its_port_was_taken_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr(clusters, "_free_port", lambda: port)
        with started(1) as cluster:
            assert cluster.dashboard.startswith("http://127.0.0.1:")
            assert f":{port}/" not in cluster.dashboard


KILLED = """
import multiprocessing, os, signal, sys
from pipeline.cluster import await_workers, started

def leave_behind():  # a semaphore that a process has made and not given back
    sys.kept = multiprocessing.get_context("spawn").Lock()
    return os.getpid()

if __name__ == "__main__":
    with started(1) as cluster:
        await_workers(cluster)
        (worker,) = cluster.client.run(leave_behind).values()
        os.kill(worker, signal.SIGKILL)
    print("ended")
"""


def test_nothing_is_said_of_what_a_killed_worker_leaves_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert (done.stdout, done.stderr) == ("ended\n", "")


def test_two_ctrl_c_while_workers_start_end_them_all(data: Path, out: Path) -> None:
    command = [sys.executable, "-m", "stages.cli", "extract", str(data), "--out", str(out), *SETTINGS, "--workers", "1"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        while not any("spawn_main" in str(child.cmdline()) for child in psutil.Process(process.pid).children()):
            assert process.poll() is None
            time.sleep(0.05)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)
        output, _ = process.communicate(timeout=30)  # until nobody has its output open
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert output == "Interrupted. Run the same command again to go on where it stopped.\n"
    assert process.returncode in (130, -signal.SIGINT)  # the second where the interpreter was ending already


@pytest.mark.slow
def test_ctrl_c_reaches_the_whole_terminal_and_the_same_command_goes_on(tmp_path: Path) -> None:
    from tests.clips import make_clip

    for number in range(16):
        make_clip(tmp_path / "data" / f"clip{number:02}.mp4", frames=100, size=(320, 240))
    out = tmp_path / "bank.h5"
    command = [sys.executable, "-m", "stages.cli", "extract", str(tmp_path / "data"), "--out", str(out), *SETTINGS]
    process = subprocess.Popen(
        [*command, "--workers", "1"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(Path(f"{out}.parts").glob("*.h5")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = (stream.decode() for stream in process.communicate(timeout=120))
    assert process.returncode == 130, stdout + stderr
    assert "Stopping: videos in flight are dropped, finished ones sealed." in stdout
    assert "Traceback" not in stdout + stderr
    with Bank(out) as bank:
        before = {video: bank.catalog.set_index("id").loc[video, "banked"] for video in bank}
    assert 0 < len(before) < 16
    result = framebank("extract", tmp_path / "data", "--out", out, *SETTINGS)
    assert result.exit_code == 0
    with Bank(out) as bank:
        assert len(bank) == 16
        assert all(bank.catalog.set_index("id").loc[video, "banked"] == when for video, when in before.items())


def test_what_is_said_of_workers() -> None:
    from pipeline.spreading import WorkerState

    one = WorkerState("tcp://a", frames_per_second=151.6)
    two = WorkerState("tcp://b", frames_per_second=98.2, failures=2, straggling=True, in_work=("clip7", "clip9"))
    assert workers_words({"0": one, "1": two}, "frame") == (
        "2 workers: worker 0 152 frames/s, worker 1 98 frames/s (2 failed); 1 straggling, at clip7, clip9"
    )
    silent = WorkerState("tcp://c", frames_per_second=120, last_seen=45)
    many = {str(number): one for number in range(6)} | {"slow": two, "mute": silent, "lost": WorkerState()}
    assert workers_words(many, "row") == (
        "8 workers: 152 rows/s each, the slowest slow 98; slow straggling, at clip7, clip9; "
        "mute not heard of for 45 s; 1 gone"
    )


def test_a_refused_address_leaves_no_client_behind() -> None:
    with pytest.raises(UserError, match="no scheduler's address"), joined("here"):
        pass
