"""Images for training: sources, what is done to each image, and batches in an order that a seed determines."""

from gamix_jax.data.batches import (
    TrainBatches,
    choose_workers,
    evaluation_batches,
    train_batches,
)
from gamix_jax.data.images import Images, fit_image, open_images

__all__ = [
    "Images",
    "TrainBatches",
    "choose_workers",
    "evaluation_batches",
    "fit_image",
    "open_images",
    "train_batches",
]
