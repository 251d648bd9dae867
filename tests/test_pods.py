"""Several processes: what they must agree on, what is said when one dies, and real runs of two of them."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
from test_main import ROOT
from test_steps import assert_same_adam_steps
from test_train import environment, lines, small_run, without_speed

from gamix_jax import pods
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.config import flatten
from gamix_jax.errors import InputError
from gamix_jax.lock import locked, read_holder
from gamix_jax.state import create_state
from gamix_jax.train import train

# Agreement, with the other process played by the test


@pytest.fixture
def played(monkeypatch):
    """Sets what process 1 of two reports; this one is process 0."""

    def play(report):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(pods, "gather", lambda mine: [mine, report])

    return play


def test_agreement_gives_the_result(played):
    assert pods.agree(lambda: ("result", {"a": 1})) == "result"  # alone
    played({"facts": {"a": 1}, "failure": None})
    assert pods.agree(lambda: ("result", {"a": 1})) == "result"


def test_disagreement_lists_all_that_differs(played):
    played({"facts": {"a": 1, "b": 3, "c": 5}, "failure": None})
    with pytest.raises(
        InputError,
        match=r"b is 2 on process 0 and 3 on process 1; d is 4 on process 0 and None on "
        r"process 1; c is None on process 0 and 5 on process 1\.",
    ):
        pods.agree(lambda: (None, {"a": 1, "b": 2, "d": 4}))


def test_the_failure_of_one_is_the_failure_of_all(played):
    played({"facts": {}, "failure": "No such folder."})
    with pytest.raises(InputError, match=r"^Process 1: No such folder\.$"):
        pods.agree(lambda: (None, {"a": 1}))

    def fail():
        raise InputError("Mine.")

    played({"facts": {"a": 1}, "failure": None})
    with pytest.raises(InputError, match=r"^Process 0: Mine\.$"):
        pods.agree(fail)


def test_the_code_has_a_digest_of_its_own(tmp_path, monkeypatch):
    """One byte of one file tells."""
    before = pods.software()
    copy = tmp_path / "gamix_jax"
    (copy / "data").mkdir(parents=True)
    for path in ("pods.py", "data/images.py"):
        (copy / path).write_text("pass\n")
    monkeypatch.setattr(pods, "__file__", str(copy / "pods.py"))
    first = pods.software()
    (copy / "data/images.py").write_text("past\n")
    second = pods.software()
    name = "the code of gamix_jax"
    assert len({x[name] for x in (before, first, second)}) == 3
    assert {k: v for k, v in before.items() if k != name} == {
        k: v for k, v in second.items() if k != name
    }
    assert before["jax"] == jax.__version__


def test_a_fingerprint_tells_one_bit():
    tree = {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)}
    before = pods.fingerprint(tree)
    tree["b"][1] = np.nextafter(np.float32(1), np.float32(2))
    assert pods.fingerprint(tree) != before


# Last words


def python(script, **options):
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        **options,
    )


@pytest.mark.parametrize(
    "end", ["os.abort()", "os.kill(os.getpid(), 9)", "os._exit(1)"]
)
def test_last_words_are_said_whatever_ends_the_process(end):
    result = python(f"""
import os
from gamix_jax.pods import LastWords
words = LastWords("First.")
words.replace("It's the $second.")
{end}
""")
    assert result.returncode != 0
    # The shell speaks after the process is gone; communicate() waits for both.
    assert result.stderr == "It's the $second.\n"


def test_last_words_outlive_a_signal_to_all_and_do_no_harm_without_their_keeper():
    result = python("""
import os, signal, time
from gamix_jax.pods import LastWords
words = LastWords("First.")
time.sleep(0.2)  # until the shell has begun
os.kill(words._keeper.pid, signal.SIGTERM)
time.sleep(0.2)
assert words._keeper.poll() is None
words._keeper.kill()
words._keeper.wait()
words.close()
print("fine")
""")
    assert (result.returncode, result.stdout) == (0, "fine\n"), result.stderr


def test_last_words_that_were_taken_back_are_not_said():
    result = python("""
from gamix_jax.pods import LastWords
words = LastWords("First.")
words.close()
""")
    assert (result.returncode, result.stderr) == (0, "")


# The lock


def test_one_process_at_a_time(tmp_path):
    script = f"""
import pathlib, sys
from gamix_jax.lock import locked
with locked(pathlib.Path({str(tmp_path)!r}), print):
    print("held", flush=True)
    sys.stdin.read()
"""
    assert read_holder(tmp_path) is None
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        expected = f"process {holder.pid} on {socket.gethostname()}"
        assert read_holder(tmp_path) == expected
        with (
            pytest.raises(InputError, match=f"in use by {expected}; wait"),
            locked(tmp_path, pytest.fail),
        ):
            pytest.fail("two at once")
        holder.kill()
    with locked(tmp_path, pytest.fail):  # it ends with the process
        assert read_holder(tmp_path).startswith(f"process {os.getpid()} ")


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    said = []
    with locked(tmp_path, said.append):
        pass
    (sentence,) = said
    assert "cannot be locked (Function not implemented)" in sentence


def test_a_workdir_in_use_is_refused(tmp_path):
    with (
        locked(tmp_path, pytest.fail),
        pytest.raises(InputError, match=f"{tmp_path} is in use by process"),
    ):
        train(small_run(), tmp_path)


# Real processes on this machine, with gloo


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class Pod:
    """Processes of the command line, each with its output in a file."""

    def __init__(self, folder, workdir, config, processes=2, devices=4, extra=None):
        values = flatten(config)
        command = [
            *(sys.executable, "-u", "-m", "gamix_jax.main"),
            *(f"--config={ROOT / 'configs/digits.py'}", f"--workdir={workdir}"),
        ]
        port, number = free_port(), len(list(folder.glob("out_*")))
        self.outputs, self.processes = [], []
        for process in range(processes):
            mine = values | ((extra or {}).get(process, {}))
            arguments = [f"--config.{key}={value}" for key, value in mine.items()]
            if processes > 1:
                arguments += [
                    *("--distributed", f"--coordinator_address=localhost:{port}"),
                    *(f"--num_processes={processes}", f"--process_id={process}"),
                ]
            cwd = folder / f"cwd_{process}"
            cwd.mkdir(exist_ok=True)
            self.outputs.append(folder / f"out_{number}_{process}")
            with self.outputs[-1].open("w") as output:
                self.processes.append(
                    subprocess.Popen(
                        command + arguments,
                        env=environment(devices, PYTHONPATH=str(ROOT)),
                        cwd=cwd,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )

    def said(self, process):
        return self.outputs[process].read_text()

    def wait(self, seconds=240):
        """Exit codes; a process that lives on is killed, and fails the test."""
        end = time.monotonic() + seconds
        try:
            return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def wait_for(self, text, seconds=200):
        end = time.monotonic() + seconds
        while text not in self.said(0):
            alive = all(p.poll() is None for p in self.processes)
            if time.monotonic() > end or not alive:
                self.wait(0)
                raise AssertionError(self.said(0) + self.said(-1))
            time.sleep(0.05)


def trained(workdir):
    """The last state, as saved."""
    return Checkpoints(workdir).restore(create_state(small_run()))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Four steps of one process with eight devices."""
    folder = tmp_path_factory.mktemp("one")
    pod = Pod(folder, folder / "run", small_run(), processes=1, devices=8)
    assert pod.wait() == [0], pod.said(0)
    return folder / "run"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The same of two processes with four devices each."""
    folder = tmp_path_factory.mktemp("two")
    pod = Pod(folder, folder / "run", small_run())
    assert pod.wait() == [0, 0], pod.said(0) + pod.said(1)
    return folder / "run", pod


def assert_same_training(*workdirs):
    """To float32 rounding: parameters as far as Adam lets them, and every number that was logged."""
    states = [jax.device_get(trained(workdir)) for workdir in workdirs]
    for player in ("generator", "discriminator"):
        assert_same_adam_steps(*states, player, steps=4)
    for a, b in zip(*map(without_speed, workdirs), strict=True):
        chex.assert_trees_all_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one_does(one, two):
    assert_same_training(one, two[0])


@pytest.mark.slow
def test_process_0_writes(one, two):
    workdir, pod = two
    assert [line["step"] for line in lines(workdir)] == [2, 2, 4, 4]
    for folder in (workdir, workdir / "figures"):
        names = [
            sorted(re.sub(r"tfevents\..*", "", p.name) for p in path.iterdir())
            for path in (folder, one / folder.relative_to(workdir))
        ]
        assert names[0] == names[1]
    said = [re.sub(r".*Gloo.*|.*connected peer.*", "", pod.said(i)) for i in (0, 1)]
    assert "step 4 " in said[0]
    assert said[1].strip() == ""


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_and_both_go_on_exactly(two, tmp_path):
    """Killed between its last checkpoint and the end: the other says so within a minute, and the end is the same bit by bit."""
    config = small_run(train__steps=100_000, train__log_every=1)
    config.train.evaluate_every = 100_000
    pod = Pod(tmp_path, tmp_path / "run", config)
    pod.wait_for("step 3 ")
    pod.processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes = pod.wait(100)
    assert time.monotonic() - killed < 60
    assert codes[0] not in (0, None)
    assert codes[1] == -signal.SIGKILL
    last = pod.said(0).strip().splitlines()[-1]
    assert last.startswith("error: process 0 of 2 was ended, as a rule since another")
    # Go on from step 2 as `two` did, whatever was done beyond it.
    for path in (tmp_path / "run/checkpoints").iterdir():
        if path.name != "2":
            path.rename(tmp_path / path.name)
    pod = Pod(tmp_path, tmp_path / "run", small_run())
    assert pod.wait() == [0, 0], pod.said(0) + pod.said(1)
    chex.assert_trees_all_equal(*(trained(w) for w in (two[0], tmp_path / "run")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_one_stops_all_with_the_state_saved(name, tmp_path):
    """In a run gone on with, that saves at every step: Orbax must not ask the same service with a counter of its own."""
    config = small_run(train__steps=3, train__log_every=1)
    config.train.evaluate_every = 100_000
    config.train.checkpoint_every = 1
    pod = Pod(tmp_path, tmp_path / "run", config)
    assert pod.wait() == [0, 0], pod.said(0) + pod.said(1)
    config.train.steps = 100_000
    pod = Pod(tmp_path, tmp_path / "run", config)
    pod.wait_for("step 5 ")
    pod.processes[1].send_signal(getattr(signal, name))
    assert pod.wait(60) == [0, 0], pod.said(0) + pod.said(1)
    (last,) = [x for x in pod.said(0).splitlines() if "Stopped" in x]
    step = lines(tmp_path / "run")[-1]["step"]
    assert last == (
        f"Stopped by SIGTERM after step {step}, which is saved; the same command goes on."
    )
    assert Checkpoints(tmp_path / "run").latest_step() == step


@pytest.mark.slow
def test_a_run_moves_between_devices_and_processes(one, tmp_path):
    """A step on one device, one on eight, one on two, one by two processes."""
    for step, (processes, devices) in enumerate(((1, 1), (1, 8), (1, 2), (2, 4)), 1):
        config = small_run(train__steps=step)
        if step in (1, 3):
            config.train.evaluate_every = config.train.log_every = 100
        pod = Pod(tmp_path, tmp_path / "run", config, processes, devices)
        assert set(pod.wait()) == {0}, pod.said(0)
    # The end of each part is logged and measured, where the run in one go is not.
    moved = tmp_path / "run/metrics.jsonl"
    kept = [x for x in lines(tmp_path / "run") if x["step"] in (2, 4)]
    moved.write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert_same_training(one, tmp_path / "run")


@pytest.mark.slow
def test_processes_that_do_not_agree_all_end(tmp_path):
    """Another learning rate, then data that one lacks, then a folder that is not shared."""
    cases = [
        (
            {1: {"optimizer.beta1": 0.25}},
            "run",
            "config.optimizer.beta1 is 0.5 on process 0 and 0.25 on process 1",
        ),
        (
            {1: {"data.source": "folder", "data.dir": "nowhere"}},
            "run",
            "Process 1: config.data.dir is 'nowhere', which is no folder",
        ),
        ({}, None, "the holder of --workdir's lock is 'process "),
    ]
    for extra, workdir, sentence in cases:
        place = tmp_path / workdir if workdir else "relative"  # to each one's folder
        pod = Pod(tmp_path, place, small_run(), extra=extra)
        assert pod.wait(100) == [1, 1]
        for process in (0, 1):
            (error,) = [x for x in pod.said(process).splitlines() if "error:" in x]
            assert sentence in error
            assert "Traceback" not in pod.said(process)


@pytest.mark.slow
def test_slurm_s_variables_start_a_pod_that_sees_each_image_once_an_epoch(tmp_path):
    """Found without addresses; 64 images, each of one shade, in two epochs of four batches."""
    np.save(
        tmp_path / "images.npy",
        np.arange(64, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8),
    )
    script = f"""
import json, jax
import numpy as np
from gamix_jax import data, pods
from gamix_jax.config import default_config

words = pods.start_processes(None, None, None)
assert (jax.process_count(), jax.device_count()) == (2, 8)
section = default_config().data
section.update(source="array", dir={str(tmp_path / "images.npy")!r}, test_fraction=0.0)
images = data.open_images(section, "train")
batches = data.train_batches(images, 16, 0, False, jax.process_index(), jax.process_count())
seen = [next(batches)[:, 0, 0, 0].tolist() for _ in range(8)]
assert pods.gather(jax.process_index()) == [0, 1]
with open(f"{tmp_path}/seen_{{jax.process_index()}}.json", "w") as file:
    json.dump(seen, file)
words.close()
"""
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2"}  # chooses the port
    slurm["SLURM_STEP_NODELIST"] = "localhost"
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", script],
                    env=environment(4, SLURM_PROCID=i, SLURM_LOCALID=i, **slurm),
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for i in ("0", "1")
        ]
        for process in processes:
            stack.callback(process.kill)
        for process in processes:
            _, error = process.communicate(timeout=100)
            assert process.returncode == 0, error
    seen = [json.loads((tmp_path / f"seen_{i}.json").read_text()) for i in (0, 1)]
    for epoch in (slice(4), slice(4, 8)):
        of_epoch = np.concatenate([np.ravel(process[epoch]) for process in seen])
        assert sorted(of_epoch) == list(range(64))


@pytest.mark.slow
def test_a_pod_that_does_not_come_together_ends():
    """The only one of two to come, with three seconds' patience: it must not go on alone."""
    result = python(f"""
from gamix_jax import pods
pods.START_SECONDS = 3
pods.start_processes("localhost:{free_port()}", 2, 1)
print("alone")
""")
    assert result.returncode != 0
    assert "alone" not in result.stdout
    assert (
        result.stderr.strip()
        .splitlines()[-1]
        .startswith("error: the processes did not all come together in 3 seconds")
    )


# The scripts, with stand-ins for what they start


def test_launch_scripts(tmp_path):
    """Arguments arrive as given, parentheses and all; a failed run on a TPU pod is started again."""
    (tmp_path / "srun").write_text(
        '#!/bin/sh\nshift 2\ntrap "exit 0" TERM\nprintf "%s\\n" "$@"\n'
        'while [ -n "$HANGS" ]; do sleep 0.05; done\n'
        'exit "${STATUS:-0}"\n'
    )
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "gcloud").write_text(
        '#!/bin/sh\nfor last; do :; done\necho "$last"\n'
        'test -e "$0.failed" || { touch "$0.failed"; exit 7; }\n'
    )
    for name in ("srun", "scontrol", "gcloud"):
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    wanted = ["--config=configs/celeba.py", "--config.model.widths=(8, 16)"]

    def start(*command, **variables):
        variables |= {"PATH": path, "PAUSE_SECONDS": "0", "SLURM_JOB_ID": "42"}
        return subprocess.Popen(
            ["bash", *command, *wanted],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    module = ["python", "-m", "gamix_jax.main", "--distributed"]
    slurm, again = ROOT / "docs/slurm.sh", ["requeue 42"]
    for variables, status, more in (
        ({}, 0, []),
        ({"STATUS": "1"}, 1, []),  # bad input
        ({"STATUS": "137"}, 137, again),  # a dead process
        ({"STATUS": "137", "SLURM_RESTART_COUNT": "10"}, 137, []),
    ):
        process = start(slurm, **variables)
        assert process.communicate(timeout=60)[0].splitlines() == module + wanted + more
        assert process.returncode == status
    process = start(slurm, HANGS="yes")  # until Slurm stops it in time
    lines = [process.stdout.readline().strip() for _ in module + wanted]
    assert lines == module + wanted
    process.terminate()
    assert process.communicate(timeout=60)[0].splitlines() == again
    assert process.returncode == 0
    process = start(ROOT / "docs/tpu_pod.sh", "name", "zone")
    output, error = process.communicate(timeout=60)
    assert "Attempt 1 of 10 has failed" in error
    first, second = output.splitlines()
    assert first == second
    command = first.removeprefix("--command=cd ~/gamix_jax && ")
    assert shlex.split(command) == ["python3", *module[1:], *wanted]
