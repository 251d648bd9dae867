"""The training step of gamix_jax in PyTorch, as its users would write and tune it; for torch_twin.py."""

import math

import ml_collections
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from twin import Autoencoder, PatchDiscriminator, load

from gamix_jax.config import flatten
from gamix_jax.errors import InputError
from gamix_jax.state import TrainState

# What the step below is written for.
SUPPORTED = {
    "data.channels": 3,
    "model.components": 1,
    "model.norm": "group",
    "model.input_norm": False,
    "model.prior": "normal",
    "discriminator.norm": "group",
    "discriminator.norm_logits": False,
    "objective.kl": "aggregate",
    "objective.kl_warmup": 0,
    "objective.samples": 1,
    "objective.variance": "total",
    "objective.covariance": "diagonal",
    "objective.moment_decay": 0.0,
    "objective.negentropy_components": 0,
    "objective.component_entropy_weight": 0.0,
    "adversarial.loss": "hinge",
    "adversarial.start": 0,
    "adversarial.prior_samples": False,
    "optimizer.decay_fraction": 0.0,
}

Metrics = dict[str, torch.Tensor]


def check_supported(config: ml_collections.ConfigDict) -> None:
    """Raises InputError where the twin would not do what the configuration says."""
    values = flatten(config)
    for key, value in SUPPORTED.items():
        if values[key] != value:
            raise InputError(
                f"config.{key} is {values[key]!r}; the PyTorch twin is written for {value!r} only."
            )


class Twin:
    """Both players, their optimiser and the average of the autoencoder's weights.

    What `gamix_jax.steps.make_train_step` does, with two differences. Where a loss is not
    finite the weights and Adam's moments stay as they were, by the flag of PyTorch's
    gradient scaler; the average of the weights goes on. A gradient far beyond the usual,
    but finite, is taken.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        state: TrainState,
        device: str,
        memory_format: torch.memory_format = torch.channels_last,
        compile_mode: str | None = None,
    ):
        """A twin of `state`, a new one of step 0.

        Args:
          config: that `state` was made by.
          state: whose weights are copied.
          device: "cpu" or "cuda".
          memory_format: of feature maps and weights.
          compile_mode: of `torch.compile`; None is eager.

        Raises:
          InputError: the configuration asks for what the twin does not do.
        """
        check_supported(config)
        self.config, self.device, self.memory_format = config, device, memory_format
        self.autoencoder = Autoencoder(config)
        load(self.autoencoder, state.generator_params, config.model.bottleneck)
        self.discriminator = PatchDiscriminator(
            config.data.channels,
            tuple(config.discriminator.widths),
            tuple(config.discriminator.strides),
        )
        load(self.discriminator, state.discriminator_params, config.model.bottleneck)
        for module in (self.autoencoder, self.discriminator):
            module.to(device=device, memory_format=memory_format)
        self.players = {
            "generator": list(self.autoencoder.parameters()),
            "discriminator": list(self.discriminator.parameters()),
        }
        self.average = [p.detach().clone() for p in self.players["generator"]]
        self.optimizer = torch.optim.Adam(
            [
                {
                    "params": params,
                    "lr": config.optimizer[f"{player}_learning_rate"],
                }
                for player, params in self.players.items()
            ],
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            eps=1e-7,
            fused=True,
        )
        self.steps = 0
        self.skipped = torch.zeros((), device=device)
        self.gradients = self._gradients
        if compile_mode is not None:
            # The backward passes too, in one graph: no gradient that nobody asks for.
            torch._dynamo.config.trace_autograd_ops = True
            self.gradients = torch.compile(self._gradients, mode=compile_mode)

    def put(self, images: np.ndarray) -> torch.Tensor:
        """uint8 [B, H, W, C] to [B, C, H, W] on the device, in the memory format."""
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
        return images.to(self.device, memory_format=self.memory_format)

    def step(self, images: torch.Tensor, noise: torch.Tensor) -> Metrics:
        """One step of both players; the host waits for nothing.

        Args:
          images: uint8 [B, C, H, W].
          noise: [B, D], normal.

        Returns:
          Scalars, those that gamix_jax logs.
        """
        metrics, gradients = self.gradients(images, noise)
        for player, params in self.players.items():
            for param, gradient in zip(params, gradients[player], strict=True):
                param.grad = gradient
            metrics[f"{player}_gradient_norm"] = nn.utils.get_total_norm(
                gradients[player]
            )
        finite = torch.stack(list(metrics.values())).isfinite().all()
        self.optimizer.found_inf = 1.0 - finite.float()
        self.skipped += self.optimizer.found_inf
        self.optimizer.step()
        renewal = 1.0 - min(
            self.config.train.ema_decay, (1.0 + self.steps) / (10.0 + self.steps)
        )
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.players["generator"], renewal)
            for player, params in self.players.items():
                metrics[f"{player}_parameter_norm"] = nn.utils.get_total_norm(params)
        self.steps += 1
        return metrics | {"skipped_steps": self.skipped.clone()}

    def _gradients(
        self, images: torch.Tensor, noise: torch.Tensor
    ) -> tuple[Metrics, dict[str, tuple[torch.Tensor, ...]]]:
        """Metrics and each player's gradients, from one forward pass of each network."""
        objective, adversarial = self.config.objective, self.config.adversarial
        images = images.float() / 127.5 - 1.0
        with self._autocast():
            features = self.autoencoder.encoder(images)
        features = features.float().flatten(1)
        mean = self.autoencoder.head["mean"](features)
        log_var = self.autoencoder.head["log_var"](features)
        variance = log_var.exp()
        z = mean + (0.5 * log_var).exp() * noise
        images = images.flip(2, 3)
        with self._autocast():
            fake = self.autoencoder.decoder(z)
        fake = fake.float()
        with self._autocast():
            real_logits = self.discriminator(images)
            fake_logits = self.discriminator(fake)
        real_logits, fake_logits = real_logits.float(), fake_logits.float()

        reconstruction = functional.l1_loss(fake, images)
        aggregate_mean = mean.mean(0)
        between = (mean - aggregate_mean).square().mean(0)
        total = between + variance.mean(0)
        kl = 0.5 * (aggregate_mean.square() + total - 1.0 - total.log()).sum()
        log_ratio = log_var - math.log(objective.collapse_target)
        collapse = (log_ratio.exp() - 1.0 - log_ratio).sum(1).mean()
        loss = (
            objective.reconstruction_weight * reconstruction
            + objective.kl_weight * kl
            + objective.collapse_weight * collapse
        )
        discriminator_loss = (1.0 - real_logits).relu().mean()
        discriminator_loss = discriminator_loss + (1.0 + fake_logits).relu().mean()
        adversarial_loss = -fake_logits.mean()

        of_discriminator = torch.autograd.grad(
            discriminator_loss, self.players["discriminator"], retain_graph=True
        )
        (of_fake,) = torch.autograd.grad(adversarial_loss, fake, retain_graph=True)
        of_generator = torch.autograd.grad(
            (loss, fake),
            self.players["generator"],
            (torch.ones_like(loss), adversarial.weight * of_fake),
        )
        metrics = {
            "reconstruction": reconstruction,
            "kl": kl,
            "collapse_penalty": collapse,
            "variance_mean": variance.mean(),
            "variance_min": variance.min(),
            "active_units": (between > 0.01).sum().float(),
            "adversarial": adversarial_loss,
            "discriminator_loss": discriminator_loss,
            "real_logit_mean": real_logits.mean(),
            "fake_logit_mean": fake_logits.mean(),
            "generator_loss": loss + adversarial.weight * adversarial_loss,
        }
        gradients = {"generator": of_generator, "discriminator": of_discriminator}
        return {name: x.detach() for name, x in metrics.items()}, gradients

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device,
            torch.bfloat16,
            enabled=self.config.model.dtype == "bfloat16",
        )
