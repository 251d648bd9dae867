"""JAX's cache of compiled programs: used by default, left alone where the user chose, no harm where it is damaged."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from gamix_jax.compiled import keep_compiled

DIR = "jax_compilation_cache_dir"
SECONDS = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture
def no_cache(monkeypatch):
    """JAX as it is where the user chose nothing; the cache of these tests is given back."""
    before = {name: getattr(jax.config, name) for name in (DIR, SECONDS)}
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    jax.config.update(DIR, None)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compute():
    return float(jax.jit(lambda x: 3 * x + 1)(2.0))


def test_everything_compiled_is_kept_and_a_damaged_entry_is_compiled_again(
    no_cache, tmp_path
):
    keep_compiled(tmp_path / "cache")
    assert compute() == 7
    entries = list((tmp_path / "cache").glob("*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
    jax.clear_caches()
    compilation_cache.reset_cache()
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
        assert compute() == 7


def test_the_user_s_own_folder_is_left(no_cache, tmp_path):
    jax.config.update(DIR, str(tmp_path / "own"))
    keep_compiled(tmp_path / "cache")
    assert getattr(jax.config, DIR) == str(tmp_path / "own")
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_to_is_done_without(no_cache, tmp_path):
    (tmp_path / "file").touch()
    keep_compiled(tmp_path / "file/cache")
    assert getattr(jax.config, DIR) is None
    assert compute() == 7
