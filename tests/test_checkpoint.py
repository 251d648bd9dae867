"""Checkpoints that something happened to: recognised, set aside, never lost."""

import collections
import contextlib
import gc
import random
import resource
import shutil
import types

import chex
import jax
import pytest
from test_fuzz import mutated
from test_train import small_run

from gamix_jax.checkpoint import Checkpoints
from gamix_jax.errors import InputError
from gamix_jax.parallel import replicate
from gamix_jax.state import create_state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints, of steps 1 and 2, and their states."""
    workdir = tmp_path_factory.mktemp("saved")
    state = create_state(small_run())
    states = {step: state.replace(step=state.step + step) for step in (1, 2)}
    checkpoints = Checkpoints(workdir)
    for step, of_step in states.items():
        checkpoints.save(step, of_step, {"position": step})
    checkpoints.close()
    return workdir, states


def test_a_save_compiles_nothing(tmp_path, caplog):
    """Of a state on all devices, as a training has it; Orbax left alone compiles for each of them."""
    state = jax.block_until_ready(replicate(create_state(small_run())))
    checkpoints = Checkpoints(tmp_path)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        checkpoints.save(1, state, {"position": 1})
        checkpoints.close()
    assert "ompil" not in caplog.text
    assert restored(tmp_path)[0] == 1


def restored(workdir):
    checkpoints = Checkpoints(workdir)
    step = checkpoints.latest_step()
    position = checkpoints.read_position()
    state = checkpoints.restore(create_state(small_run()))
    checkpoints.close()
    assert position == {"position": step}
    return step, state, checkpoints.warnings


def assert_same(*states):
    chex.assert_trees_all_equal(*states)


def damages(folder):
    """Every file of a checkpoint with a byte flipped in its middle, cut in half, or gone."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        for kind in ("flipped", "cut", "gone"):
            yield path.relative_to(folder), kind


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "gone":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif content:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.slow
def test_any_damage_is_recognised_or_does_no_harm(saved, tmp_path):
    workdir, states = saved
    recognised, harmless = 0, 0
    for i, (name, kind) in enumerate(damages(workdir / "checkpoints/2")):
        copy = tmp_path / str(i)
        shutil.copytree(workdir, copy)
        damage(copy / "checkpoints/2" / name, kind)
        # What is written after the seal holds nothing of the state.
        if name.name in ("commit_success.txt", "_CHECKPOINT_METADATA"):
            _, state, warnings = restored(copy)
            assert not warnings
            assert_same(state, states[2])
            harmless += 1
        else:
            checkpoints = Checkpoints(copy)
            step = checkpoints.latest_step()
            checkpoints.close()
            (warning,) = checkpoints.warnings
            assert "Checkpoint 2 is not as it was written" in warning
            (aside,) = (copy / "checkpoints").glob("damaged_2_*")
            assert str(aside) in warning
            assert len(list(aside.rglob("*"))) >= 5  # nothing is deleted
            assert step == 1
            if recognised == 0:
                assert_same(restored(copy)[1], states[1])
            recognised += 1
    assert recognised > 20
    assert harmless > 0


@pytest.mark.slow
def test_random_damage_loses_no_checkpoint(saved, tmp_path):
    """What is restored is one of the two bit by bit, the last that is whole, and every file stays as it was found."""
    workdir, states = saved
    rng, ends = random.Random(0), collections.Counter()

    def contents(run):
        files = (p for p in (run / "checkpoints").rglob("*") if p.is_file())
        return sorted((p.name, p.read_bytes()) for p in files)

    for i in range(40):
        run = shutil.copytree(workdir, tmp_path / str(i))
        files = sorted(p for p in (run / "checkpoints").rglob("*") if p.is_file())
        for path in rng.sample(files, rng.choice([1, 1, 2, 4])):
            path.write_bytes(mutated(path.read_bytes(), rng))
        found = contents(run)
        try:
            step, state, _ = restored(run)
        except InputError:
            step = None
            with pytest.raises(InputError, match="is as it was written"):
                restored(run)
        else:
            assert_same(state, states[step])
        ends[step] += 1
        assert contents(run) == found
    assert set(ends) == {1, 2, None}


def test_a_part_that_a_configuration_has_not_is_not_in_its_checkpoint(saved, tmp_path):
    """As in those saved before there was such a part; one that has it gets it back, or is told what is missing."""
    workdir, _ = saved
    assert not any("aggregate_fit" in str(path) for path in workdir.rglob("*"))
    metadata = next((workdir / "checkpoints/2/state").glob("_METADATA")).read_text()
    assert "moments" in metadata
    assert "aggregate_fit" not in metadata
    config = small_run(objective__negentropy_components=3)
    checkpoints = Checkpoints(workdir)
    with pytest.raises(InputError, match="aggregate_fit/first is absent, not"):
        checkpoints.restore(create_state(config))
    checkpoints.close()
    state = create_state(config)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    again = checkpoints.restore(jax.eval_shape(lambda: create_state(config)))
    checkpoints.close()
    assert_same(state, again)


def test_no_whole_checkpoint_is_an_error_and_nothing_is_moved(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    for step in (1, 2):
        damage(tmp_path / f"run/checkpoints/{step}/state/manifest.ocdbt", "flipped")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"No checkpoint in .* is as it was written"
        ):
            Checkpoints(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == [
        "1",
        "2",
    ]


def test_a_damaged_step_can_be_saved_again(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    damage(tmp_path / "run/checkpoints/2/state/manifest.ocdbt", "cut")
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(2, saved[1][2], {"position": 2})
    checkpoints.close()
    step, state, warnings = restored(tmp_path / "run")
    assert (step, warnings) == (2, [])
    assert_same(state, saved[1][2])


@contextlib.contextmanager
def files_of_at_most(size):
    """As a quota does, but without the rights that it takes to set one up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Orbax's threads end in errors of their own.
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)
def test_a_save_without_room_is_told_and_the_one_before_is_kept(saved, tmp_path):
    """It fails in the background, and is told by the next save or wait."""
    shutil.copytree(saved[0], tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run")
    state = saved[1][2]
    sentence = r"Checkpoint 3 could not be written to .* \(File too large; checkpoint 2 is kept\)"

    def save():
        checkpoints.save(3, state, {"position": 3})
        checkpoints.wait()

    with files_of_at_most(4096), pytest.raises(InputError, match=sentence) as error:
        save()
    assert "\n" not in str(error.value)
    checkpoints.close()
    gc.collect()  # or its coroutines would be noticed in a later test
    step, restored_state, warnings = restored(tmp_path / "run")
    assert (step, warnings) == (2, [])
    assert_same(restored_state, state)
    # Once there is room, the run saves again.
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(3, state, {"position": 3})
    checkpoints.close()
    assert restored(tmp_path / "run")[0] == 3


def test_a_full_disk_is_noticed_before_anything_is_written(
    saved, tmp_path, monkeypatch
):
    shutil.copytree(saved[0], tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run")
    state = saved[1][2]
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    for free, enough in ((size - 1, False), (size, True)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free)
        )
        if enough:
            checkpoints.save(3, state, {"position": 3})
        else:
            with pytest.raises(InputError, match=r"takes \d+ MiB, and .* has \d+ MiB"):
                checkpoints.save(3, state, {"position": 3})
            assert not (tmp_path / "run/checkpoints/3").exists()
    checkpoints.close()
