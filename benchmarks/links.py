"""What summing over real links would cost a training step, by arithmetic; for scaling.py."""

from typing import Any

import record

from gamix_jax import describe


def model(names: list[str], step_ms: dict[str, float]) -> list[dict[str, Any]]:
    """The share of a step spent computing over real links, where sums wait for it; see `describe.scaling_table`."""
    rows = []
    for name in names:
        config = record.load_config(name)
        images = config.train.batch_size
        sent = sum(describe.reduced_bytes(config).values())
        flop = describe.training_gflop_per_image(config) * 1e9 * images
        seconds = step_ms.get(name, 1e3 * flop / describe.ASSUMED_FLOP_RATE) / 1e3
        for devices in describe.DEVICES:
            row = {
                "config": name,
                "images a device": images,
                "ms a step": 1e3 * seconds,
            }
            row["of the step"] = "given" if name in step_ms else "assumed"
            row |= {"devices": devices, "MiB summed": sent / 2**20}
            for link, (rate, most) in describe.LINKS.items():
                share = seconds / (seconds + describe.ring_seconds(sent, devices, rate))
                row[link.replace("\n", ", ")] = (
                    f"{share:.1%}" if devices <= most else "-"
                )
            rows.append(row)
    return rows
