"""Runs from start to end: what they leave, that they go on exactly, and that they stop where they must."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from PIL import Image
from test_data import photo
from test_steps import tiny_config

from gamix_jax import divergence
from gamix_jax import loop as loop_module
from gamix_jax import steps as steps_module
from gamix_jax import train as train_module
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.config import flatten
from gamix_jax.errors import InputError
from gamix_jax.interrupts import Stopped, StopSignals
from gamix_jax.parallel import map_over_devices
from gamix_jax.resume import check_continued
from gamix_jax.state import create_state
from gamix_jax.train import train


def small_run(**overrides):
    """Digits, adversarial from the start, moments remembered, everything every second step."""
    every = {f"train__{name}_every": 2 for name in ("log", "evaluate", "checkpoint")}
    return tiny_config(
        **{
            "train__steps": 4,
            "objective__reconstruction_weight": 100.0,
            "objective__covariance": "full",
            "objective__moment_decay": 0.9,
            **every,
            **overrides,
        }
    )


def environment(devices, **extra):
    """For a process of that many devices."""
    flags = re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", os.environ["XLA_FLAGS"])
    return os.environ | {"XLA_FLAGS": flags, **extra}


def lines(workdir):
    return [
        json.loads(line)
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four steps in one go."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(small_run(), workdir)


def test_a_run_leaves_numbers_pictures_and_checkpoints(whole):
    workdir, state = whole
    assert int(state.step) == 4
    assert json.loads((workdir / "config.json").read_text()) == json.loads(
        json.dumps(small_run().to_dict())
    )
    steps = [line["step"] for line in lines(workdir)]
    assert steps == [2, 2, 4, 4]  # training, then evaluation
    assert lines(workdir)[1]["test/count"] == 180
    assert all(np.isfinite(value) for line in lines(workdir) for value in line.values())
    assert list(workdir.glob("events.out.tfevents.*"))
    names = sorted(path.name for path in (workdir / "figures").iterdir())
    assert names == [
        f"{what}_{step:08}.png"
        for what in ("reconstructions", "samples")
        for step in (2, 4)
    ]
    # 8x8 images enlarged six times, 8 to a row, a line of one pixel between
    for path in (workdir / "figures").iterdir():
        with Image.open(path) as picture:
            assert picture.size == (8 * 49 - 1, 8 * 49 - 1)
    assert Checkpoints(workdir).latest_step() == 4


def test_a_run_cut_in_two_is_the_same_run(whole, tmp_path):
    """Parameters bit by bit, and every step's numbers once, though the first half logged past its last checkpoint."""
    train(small_run(train__steps=3, train__checkpoint_every=2), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/3")
    state = train(small_run(), tmp_path)
    chex.assert_trees_all_equal(state, whole[1])
    assert without_speed(tmp_path) == without_speed(whole[0])


def test_a_finished_run_is_left_alone(whole, capsys):
    def written():
        files = whole[0].rglob("*")
        return {p: p.stat().st_mtime_ns for p in files if p.name != ".lock"}

    before = written()
    state = train(small_run(), whole[0])
    assert int(state.step) == 4
    assert "holds 4 steps already" in capsys.readouterr().out.replace("\n", " ")
    assert written() == before


def test_another_configuration_is_refused_with_all_that_differs(whole):
    config = small_run(
        model__latent_size=5, optimizer__beta1=0.25, train__steps=6, train__log_every=1
    )
    with pytest.raises(InputError) as error:
        train(config, whole[0])
    assert str(error.value) == (
        "The run was begun with another configuration: model.latent_size was 4 and is 5; "
        "optimizer.beta1 was 0.5 and is 0.25. Give what it was begun with, or another "
        "--workdir; --accept_changes goes on with the new one, where the networks stay as "
        "they are."
    )
    # What fits neither, however much it is wanted, is told by the arrays that differ.
    with pytest.raises(
        InputError,
        match=r"step 4 .* of another model or version: .*\(4, 64\), not \(5, 64\)",
    ) as error:
        train(config, whole[0], accept_changes=True)
    assert "\n" not in str(error.value)
    state = Checkpoints(whole[0]).restore(create_state(small_run()))
    chex.assert_trees_all_equal(state.step, np.int32(4))


@pytest.mark.parametrize(("then", "now"), [(0.5, 0.5), (0.5, 0.0), (0.0, 0.5)])
def test_where_learning_rates_decay_more_steps_are_another_run(then, now):
    saved, wanted = (
        json.loads(json.dumps(flatten(small_run(optimizer__decay_fraction=fraction))))
        for fraction in (then, now)  # as a checkpoint gives it back
    )
    wanted["train.steps"] = 6
    of_steps = "train.steps was 4 and is 6, to which learning rates decay"
    with pytest.raises(InputError, match=of_steps.replace(".", r"\.")):
        check_continued(saved, wanted, accept_changes=False)
    accepted = check_continued(saved, wanted, accept_changes=True)
    assert of_steps in accepted
    assert len(accepted) == 1 + (then != now)


@pytest.mark.slow
def test_a_run_that_has_ended_can_go_on_and_decay(tmp_path, capsys):
    """And is the same run where it is cut while it does."""
    alone = {"adversarial__loss": "none"}
    for name in ("plain", "decaying"):
        train(small_run(train__steps=2, **alone), tmp_path / name)
    third = train(small_run(train__steps=3, **alone), tmp_path / "plain")
    plain = train(small_run(**alone), tmp_path / "plain")
    config = small_run(optimizer__decay_fraction=0.5, **alone)
    config.train.checkpoint_every = 1
    with pytest.raises(InputError, match=r"decay_fraction was 0.0 and is 0.5"):
        train(config, tmp_path / "decaying")
    state = train(config, tmp_path / "decaying", accept_changes=True)
    # The third step is at the full rate, the fourth at half of it and from the same place.
    before, whole, half = (
        ravel_pytree(x.generator_params)[0] for x in (third, plain, state)
    )
    # Two programs round gradients apart, and Adam makes whole steps of those that are 0.
    apart = np.linalg.norm((half - before) - (whole - before) / 2)
    assert apart < 0.02 * np.linalg.norm(whole - before)
    shutil.rmtree(tmp_path / "decaying/checkpoints/4")
    chex.assert_trees_all_equal(train(config, tmp_path / "decaying"), state)
    capsys.readouterr()
    train(config, tmp_path / "decaying")
    assert "--accept_changes" in capsys.readouterr().out


def test_a_key_newer_than_the_run_had_the_effect_of_its_default(whole, monkeypatch):
    read = Checkpoints.read_position

    def older(self):
        position = read(self)
        del position["begun_with"]["adversarial.prior_samples"]
        return position

    monkeypatch.setattr(Checkpoints, "read_position", older)
    config = small_run(adversarial__prior_samples=True, train__steps=6)
    with pytest.raises(InputError, match="prior_samples was False and is True"):
        train(config, whole[0])


@pytest.mark.slow
def test_an_accepted_change_is_said_and_becomes_the_run_s(tmp_path, capsys):
    first = small_run(train__steps=1, adversarial__loss="none")
    train(first, tmp_path)
    config = small_run(train__steps=2, adversarial__loss="none", optimizer__beta1=0.25)
    train(config, tmp_path, accept_changes=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "Changed: optimizer.beta1 was 0.5 and is 0.25." in said
    config.train.steps = 3
    train(config, tmp_path)  # nothing to accept any more
    with pytest.raises(InputError, match=r"beta1 was 0.25 and is 0.5"):
        train(first, tmp_path)


@pytest.mark.slow
def test_no_more_checkpoints_than_asked_for(tmp_path):
    train(
        small_run(
            train__checkpoint_every=1,
            train__checkpoints_kept=2,
            adversarial__loss="none",
        ),
        tmp_path,
    )
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "3",
        "4",
    ]


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    """At a learning rate of 1e30 the parameters' squares overflow at once."""
    config = small_run(
        train__steps=1, train__checkpoint_every=1, adversarial__loss="none"
    )
    train(config, tmp_path)
    config.train.steps = 3
    config.optimizer.generator_learning_rate = 1e30
    with pytest.raises(
        InputError, match=r"step 2: .*generator_parameter_norm.*checkpoint 1 is kept"
    ):
        train(config, tmp_path, accept_changes=True)
    assert Checkpoints(tmp_path).latest_step() == 1


def poisoned(monkeypatch, steps, by=np.nan):
    """The reconstruction error and the loss are multiplied by NaN, or another number, at some steps, counted from 0."""

    def objective(config, images, coding, moments, fit, step, axis_name):
        loss, (metrics, *memories) = real(
            config, images, coding, moments, fit, step, axis_name
        )
        bad = jax.numpy.isin(step, jax.numpy.array(steps))
        poison = jax.numpy.where(bad, by, 1.0)
        metrics["reconstruction"] *= poison
        return loss * poison, (metrics, *memories)

    real = steps_module.autoencoder_objective
    monkeypatch.setattr(steps_module, "autoencoder_objective", objective)


@pytest.mark.slow
def test_steps_that_are_not_finite_are_left_out_as_often_as_allowed(
    tmp_path, monkeypatch, capsys
):
    """Steps 2 and 3 of four, a log step among them; the third time is one too many."""
    poisoned(monkeypatch, [1, 2])
    config = small_run(adversarial__loss="none", train__skip_nonfinite=2)
    config.train.log_every = 3
    state = train(config, tmp_path)
    assert (int(state.step), int(state.skipped)) == (4, 2)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.generator_params))
    said = " ".join(capsys.readouterr().out.split())
    for step, count in ((2, 1), (3, 2)):
        assert re.search(
            rf"Not finite at step {step}: reconstruction, generator_[\w, ]*; "
            rf"the step was left out, {count} of at most 2",
            said,
        )
    by_step = {line["step"]: line for line in lines(tmp_path) if "kl" in line}
    assert by_step[2]["skipped_steps"] == 1
    assert "reconstruction" not in by_step[2]  # JSON has no NaN
    assert by_step[4]["skipped_steps"] == 2
    assert np.isfinite(by_step[4]["reconstruction"])
    # The count goes on with the run.
    poisoned(monkeypatch, [4])
    config.train.steps = 6
    with pytest.raises(InputError, match=r"step 5: .*checkpoint 4 is kept.*nonfinite"):
        train(config, tmp_path)
    assert Checkpoints(tmp_path).latest_step() == 4


def test_a_step_left_out_changes_nothing_but_the_counts(monkeypatch):
    poisoned(monkeypatch, [0])
    config = small_run()
    step = map_over_devices(steps_module.make_train_step(config))
    before = create_state(config)
    images = np.zeros((8, 2, 8, 8, 1), np.uint8)
    after, _ = step(before, images)
    expected = before.replace(step=before.step + 1, skipped=before.skipped + 1)
    chex.assert_trees_all_equal(after, expected)
    again, _ = step(after, images)
    assert (int(again.step), int(again.skipped)) == (2, 1)


def test_a_gradient_far_beyond_the_usual_is_left_out():
    """Of Adam's memory made by hand: all but the counts stays as it was; until enough steps were taken nothing is usual."""
    config = small_run(adversarial__loss="none")
    step = map_over_devices(steps_module.make_train_step(config))
    images = np.full((8, 2, 8, 8, 1), 200, np.uint8)
    beginning = create_state(config)
    adam, *rest = beginning.generator_opt_state
    norm = float(step(beginning, images)[1]["generator_gradient_norm"])
    size = sum(x.size for x in jax.tree.leaves(adam.nu))
    first, limit = divergence.FIRST_STEPS, divergence.LARGEST_RATIO
    for count, ratio, left_out in (
        (first - 1, 1e4, False),
        (first, 0.9 * limit, False),
        (first, 1.1 * limit, True),
        (9000, 1.1 * limit, True),
    ):
        # What `count` gradients of one norm, this one's over `ratio`, leave in Adam.
        square = (norm / ratio) ** 2 * (1 - config.optimizer.beta2**count) / size
        memory = adam._replace(
            count=jax.numpy.int32(count),
            nu=jax.tree.map(lambda x: jax.numpy.full_like(x, square), adam.nu),
        )
        before = beginning.replace(generator_opt_state=(memory, *rest))
        after, metrics = step(before, images)
        np.testing.assert_allclose(
            metrics["generator_gradient_ratio"],
            ratio if count >= first else 1.0,
            rtol=1e-4,
        )
        unchanged = before.replace(step=before.step + 1, skipped=before.skipped + 1)
        same = jax.tree.map(lambda a, b: np.array_equal(a, b), after, unchanged)
        assert all(jax.tree.leaves(same)) == left_out
        assert int(after.skipped) == left_out


def test_the_usual_gradient_is_as_adam_remembers_it(monkeypatch):
    """Of norms 5, 5 and 10 with beta2 = 1/2: their squares' average with weights 1, 2 and 4."""
    monkeypatch.setattr(divergence, "FIRST_STEPS", 3)
    optimizer = optax.adam(1e-3, b2=0.5)
    state = optimizer.init(jax.numpy.zeros(2))
    for scale in (1.0, 1.0, 2.0):
        _, state = optimizer.update(scale * jax.numpy.array([3.0, -4.0]), state)
    ratio = divergence.gradient_ratio(jax.numpy.array(30.0), state, 0.5)
    usual = np.sqrt((25 + 2 * 25 + 4 * 100) / 7)
    np.testing.assert_allclose(ratio, 30 / usual, rtol=1e-6)


@pytest.mark.slow
def test_a_run_that_diverges_is_ended_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "FIRST_STEPS", 2)
    poisoned(monkeypatch, [3], by=1e9)
    config = small_run(adversarial__loss="none")
    config.train.checkpoint_every = 3
    with pytest.raises(
        InputError,
        match=r"Diverged at step 4: the gradient is [\d,]{9,} times the usual "
        r"\(checkpoint 3 is kept\); lower the learning rate",
    ):
        train(config, tmp_path)
    assert Checkpoints(tmp_path).latest_step() == 3


def test_other_data_are_refused(whole):
    for key, value in (("seed", 5), ("train__batch_size", 8), ("data__flip", True)):
        sentence = rf"begun with other data: {key.replace('__', '.')} was"
        with pytest.raises(InputError, match=sentence):
            train(small_run(train__steps=6, **{key: value}), whole[0])


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written to"):
        train(small_run(), tmp_path / "file")


def test_bad_input_stops_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(
        train_module, "create_state", lambda config: pytest.fail("work was begun")
    )
    photo(tmp_path / "images/a.png")
    (tmp_path / "images/bad.png").write_bytes(b"")
    cases = {
        "multiple of the number of devices, 8": {"train__batch_size": 12},
        "is no folder": {
            "data__source": "folder",
            "data__dir": str(tmp_path / "nowhere"),
        },
        "bad.png is not a readable image": {
            "data__source": "folder",
            "data__dir": str(tmp_path / "images"),
            "data__test_fraction": 0.5,
        },
    }
    for sentence, overrides in cases.items():
        with pytest.raises(InputError, match=sentence):
            train(small_run(**overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Stopped by a signal


def without_speed(workdir):
    return [
        {k: v for k, v in line.items() if k != "images_per_second"}
        for line in lines(workdir)
    ]


@pytest.mark.parametrize(
    ("number", "place"), [(signal.SIGTERM, "step"), (signal.SIGINT, "evaluation")]
)
def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(
    number,
    place,
    whole,
    tmp_path,
    monkeypatch,
    capsys,
):
    """After step 1, where nothing is due, and in the evaluation of step 2, which is then owed."""
    with monkeypatch.context() as patch:
        if place == "step":

            class Bar(loop_module.ProgressBar):
                def step(self, step):
                    os.kill(os.getpid(), number)

            patch.setattr(loop_module, "ProgressBar", Bar)
        else:

            def validate(eval_step, state, batches):
                os.kill(os.getpid(), number)
                return real(eval_step, state, batches)

            real = loop_module.validate
            patch.setattr(loop_module, "validate", validate)
        train(small_run(), tmp_path)
    stopped = {"step": 1, "evaluation": 2}[place]
    said = " ".join(capsys.readouterr().out.split())
    assert f"Stopped by {number.name} after step {stopped}, which is saved" in said
    assert Checkpoints(tmp_path).latest_step() == stopped
    assert [line["step"] for line in lines(tmp_path)] == {1: [], 2: [2]}[stopped]
    state = train(small_run(), tmp_path)
    chex.assert_trees_all_equal(state, whole[1])
    assert without_speed(tmp_path) == without_speed(whole[0])


def test_what_is_not_finite_in_an_evaluation_is_named_and_left_out(
    tmp_path, monkeypatch, capsys
):
    """Else the run would end there, before it is saved, and again each time that it goes on."""
    real = loop_module.validate
    changes = {"kl": float("inf"), "psnr": float("nan")}
    monkeypatch.setattr(loop_module, "validate", lambda *of: real(*of) | changes)
    train(small_run(train__steps=2), tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "at step 2, so left out of the log: kl, psnr." in said
    evaluated = lines(tmp_path)[1]
    assert evaluated["test/count"] == 180
    assert not {"test/kl", "test/psnr"} & set(evaluated)
    assert Checkpoints(tmp_path).latest_step() == 2


@pytest.mark.slow
def test_an_owed_evaluation_is_done_after_the_last_step_too(
    whole,
    tmp_path,
    monkeypatch,
):
    def validate(eval_step, state, batches):
        if int(jax.device_get(state.step)) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(eval_step, state, batches)

    real = loop_module.validate
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "validate", validate)
        train(small_run(), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [2, 2, 4]
    for _ in range(2):  # and not again
        train(small_run(), tmp_path)
        assert without_speed(tmp_path) == without_speed(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_command_ends_well_when_asked_to(name, tmp_path):
    """A real signal to a real process, once it trains: exit code 0 and one line that says how to go on."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gamix_jax.main", "--config=configs/digits.py"),
            *(f"--workdir={tmp_path}", "--config.train.steps=100000"),
            *("--config.train.batch_size=16", "--config.train.log_every=1"),
            *("--config.model.widths=(8,)", "--config.discriminator.widths=(8,)"),
            "--config.discriminator.strides=(2,)",
        ],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 2 "):
            break
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (last,) = [line for line in out.splitlines() if "Stopped" in line]
    step = int(last.split("after step ")[1].split(",")[0])
    assert last == (
        f"Stopped by {name} after step {step}, which is saved; the same command goes on."
    )
    assert Checkpoints(tmp_path).latest_step() == step


@pytest.mark.slow
def test_killed_three_times_it_ends_in_the_same_bits(tmp_path):
    """benchmarks/soak.py, which kills at random moments of any kind, in small."""
    result = subprocess.run(
        [
            *(sys.executable, "benchmarks/soak.py", "--kills=3", "--steps=400"),
            f"--json={tmp_path / 'soak.json'}",
        ],
        cwd=Path(__file__).parents[1],
        env=environment(1, PYTHONPATH="."),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads((tmp_path / "soak.json").read_text())
    assert figures["kills"] == 3
    assert figures["same state"]
    assert figures["same metrics"]


def test_signals_are_given_back_and_a_second_interrupt_is_obeyed():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with StopSignals() as signals:
        assert list(signals.unless_stopped([1, 2])) == [1, 2]
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == "SIGINT"
        with pytest.raises(Stopped):
            next(signals.unless_stopped([1]))
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
