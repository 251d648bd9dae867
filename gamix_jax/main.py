"""Command line: `python -m gamix_jax.main [--mode=MODE] --config=FILE[:VARIANT] --workdir=DIR [--config.KEY=VALUE]`.

A training needs `--config` and `--workdir`, what is done with the trained model `--workdir` alone.
"""

import gc
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from absl import app
from absl import flags as absl_flags
from absl import logging as absl_logging

from gamix_jax import flags
from gamix_jax.errors import InputError


def main(argv: list[str]) -> None:
    """Dispatches to the mode asked for; bad input ends with one sentence and exit code 1."""
    # Orbax tells every detail of a save and each of its errors, which it also raises;
    # TFDS warns of each set not prepared yet.
    absl_logging.set_verbosity(absl_logging.FATAL)
    # That there is a GPU which JAX cannot use must be seen.
    logging.getLogger("jax").setLevel(logging.WARNING)
    sys.unraisablehook = _hide_closed_loops
    # Imports and tracing make objects by the hundred thousand and little garbage: to look
    # for it at every 700 (Python 3.11) takes a tenth of a start.
    gc.set_threshold(100_000)
    if len(argv) > 1:
        sys.exit(f"error: unknown argument {argv[1]!r}; flags begin with two dashes.")
    try:
        flags.check_modes()
        if (
            flags.CONFIG.value is None
            and flags.MODE.value in flags.MODES_OF_FLAGS["config"]
        ):
            raise InputError("--config=FILE is required, such as configs/digits.py.")
        dispatch = {
            "train": _train,
            "describe": _describe,
            "prepare": _prepare,
            "evaluate": _evaluate,
            "train_features": _train_features,
            "report": _report,
            **dict.fromkeys(flags.PICTURES, _generate),
        }
        # JAX has process 0 alone write what is compiled. At the next start it would find
        # all and others nothing, and XLA for GPUs has these wait for its share of the
        # tuning.
        if (
            flags.MODE.value in flags.MODES_OF_FLAGS["cache_dir"]
            and not flags.DISTRIBUTED.value
        ):
            from gamix_jax.compiled import keep_compiled

            keep_compiled(Path(flags.CACHE_DIR.value).expanduser() / "compiled")
        dispatch[flags.MODE.value]()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        goes_on = flags.MODE.value in ("train", "prepare")
        cure = "; the same command goes on from what is saved" if goes_on else ""
        print(f"Interrupted{cure}.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _hide_closed_loops(unraisable: Any) -> None:
    """Drops what TensorStore prints by the hundred after a save that found no room."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _workdir() -> Path:
    """The folder of the run."""
    if not flags.WORKDIR.value:
        raise InputError(
            "--workdir is missing; name the folder for logs, pictures and checkpoints."
        )
    if "://" in flags.WORKDIR.value:
        raise InputError(
            f"--workdir={flags.WORKDIR.value} is no folder of this machine; mount the bucket, "
            "and name the folder that it is mounted at."
        )
    return Path(flags.WORKDIR.value).expanduser()


def _describe() -> None:
    from rich.console import Console

    from gamix_jax.describe import describe

    describe(flags.CONFIG.value, Console())


def _train() -> None:
    """Checks the flags of this mode, starts the processes if there are several, and trains."""
    workdir = _workdir()
    from gamix_jax.cpu import keep_freed_memory

    keep_freed_memory()
    from gamix_jax.profiling import parse_steps
    from gamix_jax.train import train

    profile = range(0)
    if flags.PROFILE.value is not None:
        profile = parse_steps(flags.PROFILE.value)
    if not flags.DISTRIBUTED.value:
        for name in flags.PROCESS_FLAGS:
            if absl_flags.FLAGS[name].present:
                raise InputError(f"--{name} is for --distributed; add that.")
        train(flags.CONFIG.value, workdir, flags.ACCEPT_CHANGES.value, profile)
        return
    import jax

    from gamix_jax import pods

    words = pods.start_processes(
        flags.COORDINATOR_ADDRESS.value,
        flags.NUM_PROCESSES.value,
        flags.PROCESS_ID.value,
    )
    try:
        train(flags.CONFIG.value, workdir, flags.ACCEPT_CHANGES.value, profile)
        words.close()
    except BaseException as error:
        # An orderly end would wait for the others, which wait for this process.
        if isinstance(error, InputError):
            print(f"error: {error}", file=sys.stderr)
            words.close()
        else:  # such as a collective that another process is missing from
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(2)  # once it is gone the others abort, and may have more to say
        os._exit(1)


def _prepare() -> None:
    """Checks the flags of this mode and dispatches."""
    if not flags.IMAGES.value or not flags.OUT.value:
        raise InputError("--mode=prepare needs --images=DIR and --out=DIR.")
    if (flags.SIZE.value is None) == (flags.DATASET.value is None):
        raise InputError(
            "--mode=prepare needs either --size=N, for photos, or --dataset=NAME, for the "
            "files of a published set, and not both."
        )
    if flags.DATASET.value is not None and absl_flags.FLAGS["crop"].present:
        raise InputError("--crop is for photos; a --dataset is stored as it is.")
    for name in ("images", "out"):
        if "://" in absl_flags.FLAGS[name].value:
            raise InputError(
                f"--{name}={absl_flags.FLAGS[name].value} is no path of this machine; prepare "
                "here, and copy the folder there."
            )
    from rich.console import Console

    from gamix_jax.data import prepare

    images, out = (Path(flag.value).expanduser() for flag in (flags.IMAGES, flags.OUT))
    if flags.DATASET.value is None:
        prepare.prepare_photos(
            images, out, flags.SIZE.value, flags.CROP.value, Console()
        )
    else:
        prepare.prepare_original(flags.DATASET.value, images, out, Console())


def _evaluate() -> None:
    """Checks the flags of this mode and dispatches."""
    from rich.console import Console

    from gamix_jax.evaluate import evaluate
    from gamix_jax.measurements import Options

    if (flags.FEATURES.value is None) != (flags.FEATURES_FILE.value is None):
        raise InputError(
            "--features=inception or classifier and --features_file=FILE go together; give "
            "both, or neither for an evaluation without Frechet distances."
        )
    options = Options(
        flags.COUNT.value,
        flags.FEATURES.value or "",
        flags.FEATURES_FILE.value or "",
        flags.LIKELIHOOD_SAMPLES.value,
        flags.OOD.value or "",
        flags.DATA_DIR.value or "",
        Path(flags.CACHE_DIR.value),
        flags.SEED.value,
    )
    evaluate(_workdir(), options, Console())


def _train_features() -> None:
    """Checks the flags of this mode and dispatches."""
    from rich.console import Console

    from gamix_jax.config_check import check_config
    from gamix_jax.data import open_images
    from gamix_jax.features import train_classifier

    if flags.FEATURES_FILE.value is None:
        raise InputError("--features_file=FILE.npz is missing; name the file to write.")
    check_config(flags.CONFIG.value, 1)
    train, test = (
        open_images(flags.CONFIG.value.data, split) for split in ("train", "test")
    )
    out = Path(flags.FEATURES_FILE.value).expanduser()
    train_classifier(
        train, test, out, Console(), flags.STEPS.value, seed=flags.SEED.value
    )


def _generate() -> None:
    """Checks the flags of the modes that make pictures and dispatches."""
    from rich.console import Console

    from gamix_jax.generate import Options, generate

    try:
        dimensions = tuple(int(dimension) for dimension in flags.DIMENSIONS.value)
    except ValueError as error:
        raise InputError(
            f"--dimensions={','.join(flags.DIMENSIONS.value)} must be integers, such as 0,3."
        ) from error
    options = Options(
        flags.OUT.value or "",
        flags.COUNT.value,
        flags.SEED.value,
        flags.IMAGES.value or "",
        flags.CROP.value,
        flags.SAMPLER.value,
        flags.TEMPERATURE.value,
        flags.TRUNCATION.value,
        dimensions,
        flags.DEVIATIONS.value,
        flags.DATA_DIR.value or "",
    )
    generate(flags.MODE.value, _workdir(), options, Console())


def _report() -> None:
    from rich.console import Console

    from gamix_jax.report.page import report

    report(_workdir(), flags.DATA_DIR.value or "", Console())


if __name__ == "__main__":
    absl_flags.adopt_module_key_flags(flags)  # for --help
    app.run(main, flags_parser=flags.parse_flags)
