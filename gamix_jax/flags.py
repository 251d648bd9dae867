"""The flags of the command line, and the modes that each is for."""

import sys

from absl import flags
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
PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "train: START:STOP, writes a trace from when START steps are done until STOP are to "
    "WORKDIR/profile, for TensorBoard and Perfetto; the first step of a start compiles.",
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
    "cache_dir",
    "~/.cache/gamix_jax",
    "Folder of compiled programs (but where JAX_COMPILATION_CACHE_DIR is set, or with "
    "--distributed) and, for evaluate, of features of real images.",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Of a trained model: where its data are, if they were moved."
)
STEPS = flags.DEFINE_integer("steps", 1000, "train_features: of the training.", 1)


PROCESS_FLAGS = ("coordinator_address", "num_processes", "process_id")
MODES_OF_FLAGS = {
    "config": ("train", "describe", "train_features"),
    "workdir": ("train", *TRAINED),
    **dict.fromkeys(
        ("accept_changes", "profile", "distributed", *PROCESS_FLAGS), ("train",)
    ),
    **dict.fromkeys(
        ("images", "crop"), ("prepare", "reconstruct", "interpolate", "traverse")
    ),
    "out": ("prepare", *PICTURES),
    **dict.fromkeys(("size", "dataset"), ("prepare",)),
    "count": ("sample", "reconstruct", "interpolate", "latent", "evaluate"),
    "seed": ("sample", "latent", "evaluate", "train_features"),
    **dict.fromkeys(("sampler", "temperature", "truncation"), ("sample",)),
    **dict.fromkeys(("dimensions", "deviations"), ("traverse",)),
    **dict.fromkeys(("features", "likelihood_samples", "ood"), ("evaluate",)),
    "cache_dir": ("train", "describe", "train_features", *TRAINED),
    "features_file": ("evaluate", "train_features"),
    "data_dir": TRAINED,
    "steps": ("train_features",),
}


def check_modes() -> None:
    """Refuses a flag that the mode asked for does not read."""
    for name, modes in MODES_OF_FLAGS.items():
        if flags.FLAGS[name].present and MODE.value not in modes:
            raise InputError(
                f"--{name} is for --mode={' or '.join(modes)}, not {MODE.value}."
            )


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
