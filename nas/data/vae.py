"""The codec of a variational autoencoder, as in latent diffusion (Rombach et al. 2022) and DiT (Peebles & Xie 2023).

Images are uint8 in 0..255 or floating point in [-1, 1].
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.data.codec import VAE_PREFIX, Array, Shape
from space.errors import DataError
from space.files import expanded, first_line

DEFAULT_SOURCE = "stabilityai/sd-vae-ft-ema"
DEFAULT_SCALE = 0.18215
"""Scales the latents of Stable Diffusion's first autoencoders to about unit variance (Rombach et al. 2022, appendix D.1).

It is that of configurations without a `scaling_factor`, as in diffusers.
"""
OF_DEFAULT_SCALE = (DEFAULT_SOURCE, "stabilityai/sd-vae-ft-mse")
"""Autoencoders on the hub whose scale is known without their configuration."""

LEAST_LOG_VARIANCE, LARGEST_LOG_VARIANCE = -30.0, 20.0
HUB_TIMEOUT_S = 10
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""Owner and repository; a source that does not match can only be a folder."""
MEND = "give a local folder that holds an AutoencoderKL's config.json and diffusion_pytorch_model.safetensors"

SHAPING_KEYS = ("act_fn", "block_out_channels", "down_block_types", "norm_num_groups", "up_block_types")
"""What a configuration says of the function that is computed, beyond the names and shapes of the weights."""

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Loaded = TypeVar("Loaded")


def sample_moments(moments: Tensor, noise: Tensor, scale: float, shift: float = 0.0) -> Tensor:
    """Latents (N, C, H, W) sampled from a VAE's posterior: (mean + exp(log-variance / 2)·noise - shift)·scale.

    Args:
        moments: (N, 2C, H, W), the means and then the log-variances, before scaling.
        noise: (N, C, H, W), standard normal; the result has its device and type.
        scale: The factor that latents are multiplied by.
        shift: What is subtracted from them before.
    """
    mean, log_variance = moments.to(noise).chunk(2, dim=1)
    return (mean + torch.exp(log_variance / 2) * noise - shift) * scale


@dataclass(frozen=True)
class Vae:
    """The codec of an `AutoencoderKL` of the package diffusers, given by its name on the Hugging Face hub or by its local folder.

    Loading is lazy: `latent_shape` loads the configuration only, everything else the weights as well. Both then raise DataError
    when diffusers is missing or the autoencoder cannot be loaded. Weights are read from safetensors files only, never unpickled.
    """

    source: str = DEFAULT_SOURCE
    scale: float | None = None
    """The factor of the latents; None takes `scaling_factor` of the autoencoder's configuration."""
    shift: float | None = None
    """What is subtracted from the latents before they are scaled; None takes `shift_factor` of the configuration."""
    precision: str = "float32"
    """Precision of the arithmetic: float32, or bf16 or fp16 by autocast. Weights, moments and images are always float32."""
    device: str | torch.device | None = None
    """None selects a GPU when there is one."""
    batch_size: int = 32
    """Images per pass through the autoencoder."""
    # DiT guides the first three channels (Peebles & Xie 2023, appendix A).
    guided_channels: int | None = 3
    bound: float | None = None
    expected: str = ""
    """The digest that the autoencoder must have, which is checked when it is loaded; empty for any."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise DataError(f"codec {self.name} has no precision '{self.precision}'; choose one of {', '.join(PRECISIONS)}")

    @property
    def name(self) -> str:
        """The name that a study uses."""
        return VAE_PREFIX + self.source

    def on(self, device: str | torch.device | None, precision: str) -> Vae:
        """The same codec on another device and in another precision; it loads the autoencoder again."""
        return replace(self, device=device, precision=precision)

    @property
    def is_local(self) -> bool:
        """Whether the source is a folder on this machine."""
        return expanded(self.source).is_dir()

    @cached_property
    def scaling(self) -> tuple[float, float]:
        """Scale and shift of the latents, which are (z - shift)·scale.

        Raises DataError when one is not given and the configuration cannot be read, or holds none that can be.
        """
        if self.scale is not None and self.shift is not None:
            return self.scale, self.shift
        config = {} if self.source in OF_DEFAULT_SCALE and not self.is_local else self._config_for_scaling()
        scale, shift = config.get("scaling_factor"), config.get("shift_factor")
        found = (DEFAULT_SCALE if scale is None else scale, 0.0 if shift is None else shift)
        for value, key in zip(found, ("scaling_factor", "shift_factor"), strict=True):
            if not isinstance(value, int | float) or not math.isfinite(value) or (key == "scaling_factor" and value <= 0):
                raise DataError(f"codec {self.name}: {key} of its config.json is {value!r}; mend it, or give --scale and --shift")
        return self.scale if self.scale is not None else float(found[0]), self.shift if self.shift is not None else float(found[1])

    def _config_for_scaling(self) -> dict[str, Any]:
        try:
            return self._config
        except DataError as error:
            if self.scale is not None:
                # An autoencoder with a shift is rare, and one whose scale is given is not asked for.
                return {}
            raise DataError(f"the scale of its latents is not known, because {error}; or give the scale with --scale") from None

    @property
    def factor(self) -> int:
        """Pixels per latent along each side: each resolution of the autoencoder except the last halves the sides."""
        resolutions = len(self._setting("block_out_channels"))
        return int(2 ** (resolutions - 1))

    def latent_shape(self, image: Shape) -> Shape:
        """(3, H, W) → (latent channels, H/factor, W/factor); raises DataError for another number of channels or other sides."""
        channels, height, width = image
        expected = self._setting("in_channels")
        if channels != expected:
            raise DataError(f"codec {self.name} needs images of {expected} channels, not {channels}; convert them first")
        if height % self.factor or width % self.factor or not height or not width:
            raise DataError(f"codec {self.name} needs a height and width divisible by {self.factor}, not {height}×{width}")
        return self._setting("latent_channels"), height // self.factor, width // self.factor

    def check_latents(self, shape: Shape) -> None:
        """Raises DataError when a VAE in a folder has another number of latent channels; one on the hub is not asked for it."""
        try:
            config = json.loads((expanded(self.source) / "config.json").read_text(encoding="utf-8"))
            channels = config["latent_channels"]
        except (OSError, ValueError, KeyError, TypeError):
            # Training needs no images, and whatever does says what is wrong with the folder.
            return
        if shape[0] != channels:
            raise DataError(f"codec {self.name} has latents of {channels} channels, not {shape[0]}; name the codec that made them")

    def mirror_channels(self, channels: int) -> None:
        """None: mirroring the latents does not give the latents of the mirrored image."""
        return None

    def moments(self, images: NDArray[Any]) -> Array:
        """The posterior of images: means and then log-variances before scaling, float32 (N, 2C, H/factor, W/factor).

        Nothing is sampled, so equal images have equal moments. Log-variances are clamped to [-30, 20] as in diffusers.

        Args:
            images: (N, 3, H, W) uint8 or floating point.

        Raises:
            DataError: The images have another shape or type, or finite images have moments that are not finite.
        """
        if images.ndim != 4 or not (images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)):
            raise DataError(
                f"codec {self.name} needs images (N, 3, H, W) of type uint8 or float, not {images.dtype} {_shape(images.shape)}"
            )
        channels, height, width = self.latent_shape((images.shape[1], images.shape[2], images.shape[3]))

        def encoded(batch: Tensor) -> Tensor:
            x = batch.float() / 127.5 - 1 if batch.dtype == torch.uint8 else batch.float()
            mean, log_variance = self._model.encode(x).latent_dist.parameters.float().chunk(2, dim=1)
            return torch.cat([mean, log_variance.clamp(LEAST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)], dim=1)

        return self._in_batches(images, (2 * channels, height, width), encoded)

    def encode(self, images: NDArray[Any]) -> Array:
        """The scaled mean latents, float32 (N, C, H/factor, W/factor), of images (N, 3, H, W); raises as `moments` does."""
        moments = self.moments(images)
        scale, shift = self.scaling
        mean: Array = (moments[:, : moments.shape[1] // 2] - np.float32(shift)) * np.float32(scale)
        return mean

    def decode(self, latents: Array) -> Array:
        """The images of scaled latents, float32 (N, 3, H·factor, W·factor), clipped to [-1, 1].

        Args:
            latents: (N, C, H, W).

        Raises:
            DataError: The latents have another shape, or finite latents have images that are not finite.
        """
        channels = self._setting("latent_channels")
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise DataError(f"codec {self.name} needs latents (N, {channels}, H, W), not {_shape(latents.shape)}")
        scale, shift = self.scaling
        image = (self._setting("out_channels"), latents.shape[2] * self.factor, latents.shape[3] * self.factor)

        def decoded(batch: Tensor) -> Tensor:
            images: Tensor = self._model.decode(batch.float() / scale + shift).sample
            return images.float().clamp(-1, 1)

        return self._in_batches(latents, image, decoded)

    def _in_batches(self, inputs: NDArray[Any], shape: Shape, step: Callable[[Tensor], Tensor]) -> Array:
        """The outputs (N, *shape) of `step` over inputs (N, …), computed in batches of `batch_size`."""
        outputs = np.empty((len(inputs), *shape), dtype=np.float32)
        with torch.inference_mode(), self._arithmetic():
            for start in range(0, len(inputs), self.batch_size):
                # A copy, because torch warns of arrays that are mapped from a read-only file.
                batch = torch.from_numpy(np.array(inputs[start : start + self.batch_size], order="C"))
                outputs[start : start + self.batch_size] = step(batch.to(self._device)).cpu().numpy()
        if not np.isfinite(outputs).all() and np.isfinite(inputs).all():
            raise DataError(
                f"codec {self.name} gives numbers that are not finite in {self.precision}; "
                "use bf16 or float32, whose range is wider, and check the weights if it stays so"
            )
        return outputs

    @cached_property
    def _device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Autocast where the precision asks for it; otherwise float32 without TF32, and deterministic kernels."""
        dtype = PRECISIONS[self.precision]
        cudnn = torch.backends.cudnn
        with (
            torch.autocast(self._device.type, dtype=dtype, enabled=dtype != torch.float32),
            cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield

    def _setting(self, key: str) -> Any:
        if key not in self._config:
            raise DataError(f"codec {self.name}: its config.json has no '{key}'; {MEND}")
        return self._config[key]

    @cached_property
    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = self._load(lambda kind, folder, **where: kind.load_config(folder, **where))
        # diffusers would read another model's folder, such as a diffusion model's, as an autoencoder of default sizes.
        if config.get("_class_name") != "AutoencoderKL":
            raise DataError(f"codec {self.name}: its config.json describes a {config.get('_class_name')}, no AutoencoderKL; {MEND}")
        return config

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights."""
        return self._digests[0]

    @property
    def digest(self) -> str:
        """SHA-256 of configuration and weights, the same wherever they lie; scale and shift are kept apart from it."""
        return self._digests[1]

    @cached_property
    def _digests(self) -> tuple[str, str]:
        weights = hashlib.sha256()
        for name, value in sorted(self._loaded.state_dict().items()):
            weights.update(name.encode())
            weights.update(value.cpu().contiguous().numpy().tobytes())
        # As the model was built, so that a configuration that spells out a default is the same one.
        config = json.dumps({key: self._loaded.config[key] for key in SHAPING_KEYS})
        return weights.hexdigest(), hashlib.sha256((config + weights.hexdigest()).encode()).hexdigest()

    @property
    def _model(self) -> Any:
        """The autoencoder; raises DataError when its digest is another than expected."""
        if self.expected and self.digest != self.expected:
            raise DataError(
                f"codec {self.name} is not the VAE that the latents came from: its digest is {self.digest[:8]}, "
                f"and {self.expected[:8]} is recorded; name that one's folder with --codec vae:FOLDER"
            )
        return self._loaded

    @cached_property
    def _loaded(self) -> Any:
        """The autoencoder in float32 on the device, in evaluation mode."""
        model, report = self._load(
            lambda kind, folder, **where: kind.from_pretrained(
                folder,
                use_safetensors=True,
                torch_dtype=torch.float32,
                # It needs another package and saves only the memory of one copy of a small model.
                low_cpu_mem_usage=False,
                output_loading_info=True,
                **where,
            )
        )
        # diffusers only warns of missing weights and leaves random ones in their place.
        if report["missing_keys"]:
            count, first = len(report["missing_keys"]), min(report["missing_keys"])
            raise DataError(f"codec {self.name}: its weights lack {count} tensors, '{first}' among them; {MEND}")
        return model.to(self._device).eval().requires_grad_(False)

    def _load(self, loader: Callable[..., Loaded]) -> Loaded:
        """The result of `loader(AutoencoderKL, source, …)`.

        The source is the local folder if there is one, else the copy in the hub's cache, else the hub itself.
        """
        try:
            from diffusers import AutoencoderKL
            from huggingface_hub import HfApi
        except (ImportError, RuntimeError) as error:
            raise DataError(
                f"codec {self.name} needs diffusers ({first_line(error).rstrip('.')}); pip install 'udit-nas[vae]'"
            ) from error
        folder = expanded(self.source)
        if not folder.is_dir() and (folder.exists() or not HUB_NAME.fullmatch(self.source)):
            raise DataError(f"codec {self.name}: no folder {folder}; {MEND}")
        # The loaders and the hub's client raise many classes of errors for damaged files and failed connections.
        try:
            if folder.is_dir():
                return loader(AutoencoderKL, folder)
            try:
                return loader(AutoencoderKL, self.source, local_files_only=True)
            except OSError:
                # One request with a time limit, because the loaders themselves retry a dead connection for minutes.
                HfApi().model_info(self.source, timeout=HUB_TIMEOUT_S)
                return loader(AutoencoderKL, self.source)
        except Exception as error:
            raise DataError(f"codec {self.name} cannot be loaded ({first_line(error).rstrip('.')}); {MEND}") from error


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
