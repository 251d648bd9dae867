"""Command line: `python -m gamix_jax.main [--mode=MODE] --config=FILE[:VARIANT] --workdir=DIR [--config.KEY=VALUE]`.

A training needs `--config` and `--workdir`, what is done with the trained model `--workdir` alone.
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from gamix_jax.errors import InputError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File of the experiment, with its variant after a colon."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: logs, pictures, checkpoints."
)
PICTURES = ("sample", "reconstruct", "interpolate", "traverse", "latent")
TRAINED = (*PICTURES, "evaluate", "report")  # modes of a trained model
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "describe", "prepare", "train_features", *TRAINED],
    "What to do.",
)
ACCEPT_CHANGES = flags.DEFINE_bool(
    "accept_changes",
    False,
    "train: go on with another configuration than the run was begun with.",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "train: one of several processes; TPU pods, Slurm and Open MPI say which, else the next three.",
)
COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "train: HOST:PORT of process 0, a port that is free."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "train: processes in all.", 1
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "train: number of this process, from 0.", 0
)
IMAGES = flags.DEFINE_string(
    "images",
    None,
    "prepare, reconstruct, interpolate, traverse: folder, zip or tar of photos, or one; "
    "prepare: or folder of --dataset.",
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "prepare: folder of the TFDS data set; pictures: folder of what is made [WORKDIR/MODE].",
)
SIZE = flags.DEFINE_integer("size", None, "prepare: height and width, pixels.", 1)
CROP = flags.DEFINE_enum(
    "crop",
    "center",
    ["center", "celeba", "celeba_hq", "none"],
    "Of --images: what is kept.",
)
DATASET = flags.DEFINE_string(
    "dataset", None, "prepare: published set in --images, such as celeb_a; not photos."
)
COUNT = flags.DEFINE_integer(
    "count", None, "Images; interpolate: pairs of them; evaluate: of each kind.", 1
)
SEED = flags.DEFINE_integer("seed", 0, "Of what is drawn at random.", 0, 2**32 - 1)
SAMPLER = flags.DEFINE_enum(
    "sampler",
    "prior",
    ["prior", "gmm"],
    "sample: from p(z), or from a mixture fitted to the aggregate posterior.",
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "sample: factor of the standard deviations."
)
TRUNCATION = flags.DEFINE_float(
    "truncation", None, "sample: largest absolute value of the noise [no limit]."
)
DIMENSIONS = flags.DEFINE_list(
    "dimensions", [], "traverse: such as 0,3 [the most active]."
)
DEVIATIONS = flags.DEFINE_float(
    "deviations", 3.0, "traverse: how far, standard deviations of the prior."
)
FEATURES = flags.DEFINE_enum(
    "features",
    None,
    ["inception", "classifier"],
    "evaluate: what Frechet distances are measured by.",
)
FEATURES_FILE = flags.DEFINE_string(
    "features_file", None, "evaluate: weights of --features; train_features: to write."
)
LIKELIHOOD_SAMPLES = flags.DEFINE_integer(
    "likelihood_samples", 64, "evaluate: draws of z an image for log p(x).", 1
)
OOD = flags.DEFINE_string(
    "ood",
    None,
    "evaluate: images to tell apart, digits, folder:DIR, array:FILE or tfds:NAME.",
)
CACHE_DIR = flags.DEFINE_string(
    "cache_dir", "~/.cache/gamix_jax", "evaluate: folder of features of real images."
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Of a trained model: where its data are, if they were moved."
)
STEPS = flags.DEFINE_integer("steps", None, "train_features: of the training.", 1)


PROCESS_FLAGS = ("coordinator_address", "num_processes", "process_id")
MODES_OF_FLAGS = {
    "config": ("train", "describe", "train_features"),
    "workdir": ("train", *TRAINED),
    **dict.fromkeys(("accept_changes", "distributed", *PROCESS_FLAGS), ("train",)),
    **dict.fromkeys(
        ("images", "crop"), ("prepare", "reconstruct", "interpolate", "traverse")
    ),
    "out": ("prepare", *PICTURES),
    **dict.fromkeys(("size", "dataset"), ("prepare",)),
    "count": ("sample", "reconstruct", "interpolate", "latent", "evaluate"),
    "seed": ("sample", "latent", "evaluate", "train_features"),
    **dict.fromkeys(("sampler", "temperature", "truncation"), ("sample",)),
    **dict.fromkeys(("dimensions", "deviations"), ("traverse",)),
    **dict.fromkeys(
        ("features", "likelihood_samples", "ood", "cache_dir"), ("evaluate",)
    ),
    "features_file": ("evaluate", "train_features"),
    "data_dir": TRAINED,
    "steps": ("train_features",),
}


def main(argv: list[str]) -> None:
    """Dispatches to the mode asked for; bad input ends with one sentence and exit code 1."""
    # Orbax tells every detail of a save and each of its errors, which it also raises;
    # TFDS warns of each set not prepared yet.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _hide_closed_loops
    if len(argv) > 1:
        sys.exit(f"error: unknown argument {argv[1]!r}; flags begin with two dashes.")
    try:
        for name, modes in MODES_OF_FLAGS.items():
            if flags.FLAGS[name].present and MODE.value not in modes:
                raise InputError(
                    f"--{name} is for --mode={' or '.join(modes)}, not {MODE.value}."
                )
        if CONFIG.value is None and MODE.value in MODES_OF_FLAGS["config"]:
            raise InputError("--config=FILE is required, such as configs/digits.py.")
        dispatch = {
            "train": _train,
            "describe": _describe,
            "prepare": _prepare,
            "evaluate": _evaluate,
            "report": _report,
            **dict.fromkeys(PICTURES, _generate),
        }
        dispatch[MODE.value]()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(
            "Interrupted; the same command goes on from what is saved.", file=sys.stderr
        )
        sys.exit(128 + signal.SIGINT)


def _hide_closed_loops(unraisable: Any) -> None:
    """Drops what TensorStore prints by the hundred after a save that found no room."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _workdir() -> Path:
    """The folder of the run."""
    if not WORKDIR.value:
        raise InputError(
            "--workdir is missing; name the folder for logs, pictures and checkpoints."
        )
    if "://" in WORKDIR.value:
        raise InputError(
            f"--workdir={WORKDIR.value} is no folder of this machine; mount the bucket, "
            "and name the folder that it is mounted at."
        )
    return Path(WORKDIR.value).expanduser()


def _describe() -> None:
    from rich.console import Console

    from gamix_jax.describe import describe

    describe(CONFIG.value, Console())


def _train() -> None:
    """Checks the flags of this mode, starts the processes if there are several, and trains."""
    workdir = _workdir()
    from gamix_jax.train import train

    if not DISTRIBUTED.value:
        for name in PROCESS_FLAGS:
            if flags.FLAGS[name].present:
                raise InputError(f"--{name} is for --distributed; add that.")
        train(CONFIG.value, workdir, ACCEPT_CHANGES.value)
        return
    import jax

    from gamix_jax import pods

    words = pods.start_processes(
        COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value
    )
    try:
        train(CONFIG.value, workdir, ACCEPT_CHANGES.value)
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
    if not IMAGES.value or not OUT.value:
        raise InputError("--mode=prepare needs --images=DIR and --out=DIR.")
    if (SIZE.value is None) == (DATASET.value is None):
        raise InputError(
            "--mode=prepare needs either --size=N, for photos, or --dataset=NAME, for the "
            "files of a published set, and not both."
        )
    if DATASET.value is not None and flags.FLAGS["crop"].present:
        raise InputError("--crop is for photos; a --dataset is stored as it is.")
    for name in ("images", "out"):
        if "://" in flags.FLAGS[name].value:
            raise InputError(
                f"--{name}={flags.FLAGS[name].value} is no path of this machine; prepare "
                "here, and copy the folder there."
            )
    from rich.console import Console

    from gamix_jax.data import prepare

    images, out = (Path(flag.value).expanduser() for flag in (IMAGES, OUT))
    if DATASET.value is None:
        prepare.prepare_photos(images, out, SIZE.value, CROP.value, Console())
    else:
        prepare.prepare_original(DATASET.value, images, out, Console())


def _evaluate() -> None:
    """Checks the flags of this mode and dispatches."""
    from rich.console import Console

    from gamix_jax.evaluate import evaluate
    from gamix_jax.measurements import Options

    if (FEATURES.value is None) != (FEATURES_FILE.value is None):
        raise InputError(
            "--features=inception or classifier and --features_file=FILE go together; give "
            "both, or neither for an evaluation without Frechet distances."
        )
    options = Options(
        COUNT.value,
        FEATURES.value or "",
        FEATURES_FILE.value or "",
        LIKELIHOOD_SAMPLES.value,
        OOD.value or "",
        DATA_DIR.value or "",
        Path(CACHE_DIR.value),
        SEED.value,
    )
    evaluate(_workdir(), options, Console())


def _generate() -> None:
    """Checks the flags of the modes that make pictures and dispatches."""
    from rich.console import Console

    from gamix_jax.generate import Options, generate

    try:
        dimensions = tuple(int(dimension) for dimension in DIMENSIONS.value)
    except ValueError as error:
        raise InputError(
            f"--dimensions={','.join(DIMENSIONS.value)} must be integers, such as 0,3."
        ) from error
    options = Options(
        OUT.value or "",
        COUNT.value,
        SEED.value,
        IMAGES.value or "",
        CROP.value,
        SAMPLER.value,
        TEMPERATURE.value,
        TRUNCATION.value,
        dimensions,
        DEVIATIONS.value,
        DATA_DIR.value or "",
    )
    generate(MODE.value, _workdir(), options, Console())


def _report() -> None:
    from rich.console import Console

    from gamix_jax.report import report

    report(_workdir(), DATA_DIR.value or "", Console())


def parse_flags(argv: list[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the command line; a configuration or override with an unknown key or a wrong type ends with one sentence."""
    try:
        rest = values(argv)
        if values.config is not None:
            values.config.keys()  # a file that is missing is reported on first use
        return rest
    except (flags.Error, OSError) as error:
        cause = " ".join(str(error).split())
        if "Traceback" in cause:  # quoted, with the cause last
            cause = str(error).strip().splitlines()[-1].strip()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections raises a representation of its message, escapes and all.
        cause = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
        if isinstance(error, (AttributeError, KeyError)):
            cause = "unknown key " + cause.strip("'").replace("'", ".", 1)
    if "get_config() takes 0 positional arguments" in cause:
        cause = "this --config has no variants; leave the colon and what follows out."
    sys.exit(f"error: bad command line or configuration: {cause}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
