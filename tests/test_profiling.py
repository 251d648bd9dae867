"""The trace of --profile: which steps it holds, and which it refuses."""

import collections
import gzip
import json
import os
import shutil
import signal

import pytest
from test_train import small_run

from gamix_jax import loop as loop_module
from gamix_jax.errors import InputError
from gamix_jax.profiling import parse_steps
from gamix_jax.train import train


def events(workdir):
    """Of the one trace of a run, which is there in the formats of TensorBoard and of Perfetto."""
    (folder,) = (workdir / "profile/plugins/profile").iterdir()
    (for_tensorboard,) = folder.glob("*.xplane.pb")
    assert for_tensorboard.stat().st_size
    (for_perfetto,) = folder.glob("*.trace.json.gz")
    with gzip.open(for_perfetto) as file:
        return json.load(file)["traceEvents"]


def traced_steps(workdir):
    found = [e for e in events(workdir) if e.get("name") == "train"]
    return sorted(int(event["args"]["step_num"]) for event in found)


def test_the_steps_asked_for_are_traced_with_their_work(digits_run, tmp_path, capsys):
    """Steps 4 and 5 of a run that goes on from 4, of 7; all 8 devices run the program twice, to its end."""
    shutil.copytree(digits_run, tmp_path / "run")
    train(small_run(train__steps=7), tmp_path / "run", profile=parse_steps("4:6"))
    assert traced_steps(tmp_path / "run") == [4, 5]
    traced = [
        e["args"] for e in events(tmp_path / "run") if "hlo_op" in e.get("args", {})
    ]
    # The step has most operations; what else JAX runs meanwhile is no matter here.
    step, _ = collections.Counter(e["hlo_module"] for e in traced).most_common(1)[0]
    operations = collections.Counter(
        (e["device_ordinal"], e["run_id"]) for e in traced if e["hlo_module"] == step
    )
    assert len(operations) == 8 * 2
    assert len(set(operations.values())) == 1
    assert f"Trace written to {tmp_path / 'run/profile'}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_stopped_in_the_middle_leaves_its_trace(
    digits_run, tmp_path, monkeypatch
):
    class Bar(loop_module.ProgressBar):
        def step(self, step):
            if step == 6:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop_module, "ProgressBar", Bar)
    shutil.copytree(digits_run, tmp_path / "run")
    state = train(small_run(train__steps=9), tmp_path / "run", profile=range(5, 9))
    assert int(state.step) == 6
    assert traced_steps(tmp_path / "run") == [5]


@pytest.mark.parametrize("text", ["5", "7:3", "3:3", "a:b", "-1:3", "1:2:3", ":", ""])
def test_what_is_no_range_of_steps_is_refused(text):
    with pytest.raises(InputError, match=r"must be START:STOP.*such as 100:110"):
        parse_steps(text)


def test_steps_that_the_run_does_not_make_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"--profile=2:5 is not within .* run, 0:4\."):
        train(small_run(), tmp_path / "run", profile=range(2, 5))
    assert not (tmp_path / "run").exists()


def test_the_same_command_goes_on_past_steps_that_are_done(
    digits_run, tmp_path, capsys
):
    """A run of 4 steps, stopped in or after what was to be traced, as after a signal."""
    shutil.copytree(digits_run, tmp_path / "run")
    train(small_run(train__steps=6), tmp_path / "run", profile=range(3, 5))
    assert traced_steps(tmp_path / "run") == [4]
    assert "Of the steps of --profile=3:5 1 is left" in capsys.readouterr().out
    state = train(small_run(train__steps=7), tmp_path / "run", profile=range(3, 5))
    assert int(state.step) == 7
    assert traced_steps(tmp_path / "run") == [4]
    assert "Of the steps of --profile=3:5 none is left" in capsys.readouterr().out


def test_a_folder_that_takes_no_trace_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "profile").touch()
    with pytest.raises(InputError, match=r"/profile cannot be written to"):
        train(small_run(), tmp_path, profile=range(2, 4))
    assert not (tmp_path / "checkpoints").exists()


def test_a_trace_that_cannot_be_written_leaves_the_run_as_it_is(
    digits_run, tmp_path, capsys
):
    class Bar(loop_module.ProgressBar):
        def step(self, step):
            if step == 5:
                shutil.rmtree(tmp_path / "run/profile")
                (tmp_path / "run/profile").touch()

    shutil.copytree(digits_run, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "ProgressBar", Bar)
        state = train(small_run(train__steps=7), tmp_path / "run", profile=range(4, 6))
    assert int(state.step) == 7
    assert "No trace could be written to" in capsys.readouterr().out
