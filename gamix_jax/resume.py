"""Whether a run may go on with the configuration that is given now."""

import json
from typing import Any

from gamix_jax.errors import InputError

# What changes no number of the run; train.steps only where learning rates do not decay
# towards the last of them.
FREE = (
    "data.dir",
    "data.memory_gib",
    "data.workers",
    "data.prefetch",
    "data.max_bad_fraction",
    "train.steps",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.checkpoints_kept",
    "train.skip_nonfinite",
)
# What the order of the images depends on, besides the section data.
ORDER = ("seed", "train.batch_size", "number of training images")


def check_continued(
    saved: dict[str, Any], wanted: dict[str, Any], accept_changes: bool
) -> list[str]:
    """Compares what a run was begun with and what it is to go on with.

    Args:
      saved: `config.flatten` of the configuration then, and "number of training
        images", as JSON gives them back.
      wanted: the same of now.
      accept_changes: allows changes that leave the images and their order alone.

    Returns:
      What differs and was allowed by that.

    Raises:
      InputError: lists what differs and may not.
    """
    wanted = json.loads(json.dumps(wanted))
    decays = any(x["optimizer.decay_fraction"] for x in (saved, wanted))
    free = [key for key in FREE if not (decays and key == "train.steps")]
    differing = {
        key: f"{key} was {saved[key]!r} and is {value!r}"
        + (", to which learning rates decay" if key in FREE else "")
        for key, value in wanted.items()
        if key in saved and saved[key] != value and key not in free
    }
    order = [
        difference
        for key, difference in differing.items()
        if key in ORDER or key.startswith("data.")
    ]
    if order:
        every = [*order, *(x for x in differing.values() if x not in order)]
        raise InputError(
            f"The run was begun with other data: {'; '.join(every)}. Give what it was "
            "begun with, or another --workdir."
        )
    if differing and not accept_changes:
        raise InputError(
            f"The run was begun with another configuration: {'; '.join(differing.values())}. "
            "Give what it was begun with, or another --workdir; --accept_changes goes on "
            "with the new one, where the networks stay as they are."
        )
    return list(differing.values())
