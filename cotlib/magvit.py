"""MAGVIT-v2's image tokenizer: 256 x 256 px <-> 16 x 16 lookup-free codes of 13 bits (arXiv:2310.05737).

A convolutional autoencoder that halves the picture four times; a code is the sign pattern of one position of its
bottleneck, channel 0 its most significant bit, 0 counts as negative. Names and shapes of the weights are those of
`showlab/magvitv2`, the port to images that Show-o uses. The protocol is that of `pocket/tokenizer.py`.

Left out: the training losses and the discriminator.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from . import checkpoint
from .errors import CorruptError


@dataclass(frozen=True)
class MagvitConfig:
    """Sizes, by level; level 0 is full resolution, each next one half of it."""

    channels: int = 128
    encoder_widths: tuple[int, ...] = (1, 2, 2, 4, 4)  # in units of `channels`
    encoder_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)  # residual blocks
    decoder_widths: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    bits: int = 13
    image_size: int = 256  # px of the square pictures that encode and decode expect unless told otherwise

    def __post_init__(self) -> None:
        depths = {
            len(getattr(self, f"{side}_{what}")) for side in ("encoder", "decoder") for what in ("widths", "blocks")
        }
        if len(depths) != 1:
            raise ValueError(
                f"MAGVIT-v2: widths and blocks must have as many levels in encoder and decoder, got {self}"
            )
        if self.image_size % self.cell:
            raise ValueError(f"MAGVIT-v2: image_size must be a multiple of {self.cell}, got {self.image_size}")

    @property
    def cell(self) -> int:
        """Side of the square that one code stands for, px."""
        return 2 ** (len(self.encoder_widths) - 1)


# --- Parts, named as in the published weights -------------------------------------------------------------------


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.norm1, self.conv1 = norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = norm(after), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Every position attends to every other: one head, over all channels."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))  # [B, 1, hw, C]
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(attended.transpose(1, 2).view(x.shape))


class Middle(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResBlock(width, width), AttnBlock(width), ResBlock(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Resample(nn.Module):
    """Half or twice the resolution, with a convolution."""

    def __init__(self, width: int, up: bool):
        super().__init__()
        self.up, self.conv = up, nn.Conv2d(width, width, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only


class Level(nn.Module):
    """Residual blocks at one resolution, then a change of it, unless it is the last."""

    def __init__(self, before: int, after: int, n_blocks: int, then: str | None):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(after if i else before, after) for i in range(n_blocks))
        self.then = then
        if then:
            self.add_module(then, Resample(after, up=then == "upsample"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.block:
            x = block(x)
        return getattr(self, self.then)(x) if self.then else x


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] in [-1, 1] -> what codes are the signs of, [B, bits, H / cell, W / cell]."""

    def __init__(self, config: MagvitConfig):
        super().__init__()
        widths = [config.channels * w for w in config.encoder_widths]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        before, last = [config.channels, *widths], len(widths) - 1
        self.down = nn.ModuleList(
            Level(before[i], widths[i], n, "downsample" if i < last else None)
            for i, n in enumerate(config.encoder_blocks)
        )
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], config.bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.bits, config.bits, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    """Signs [B, bits, h, w] -> pixels [B, 3, h * cell, w * cell], around [-1, 1] but not clamped to it."""

    def __init__(self, config: MagvitConfig):
        super().__init__()
        widths = [config.channels * w for w in config.decoder_widths]
        self.post_quant_conv = nn.Conv2d(config.bits, config.bits, 1)
        self.conv_in = nn.Conv2d(config.bits, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        before = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(  # listed from full resolution down, run from the last to the first
            Level(before[i], widths[i], n, "upsample" if i else None) for i, n in enumerate(config.decoder_blocks)
        )
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, signs: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(signs)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantizer(nn.Module):
    """z [B, bits, h, w] -> codes int64 [B, h, w]. Its tables follow from `bits`; the published weights store them."""

    def __init__(self, bits: int):
        super().__init__()
        powers = 2 ** torch.arange(bits - 1, -1, -1)
        self.register_buffer("power_vals", powers)  # int64 [bits]
        codes = torch.arange(2**bits)
        self.register_buffer("embedding", ((codes[:, None] & powers) > 0).float() * 2 - 1)  # ±1, float [2^bits, bits]

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return ((z > 0) * self.power_vals[:, None, None]).sum(1)


# --- The tokenizer ----------------------------------------------------------------------------------------------


class Magvit(nn.Module):
    """`encode` pictures to codes, `decode` codes to pictures, float32 throughout as in the published code.

    `grid` = (rows, columns) makes either of them take another shape than the square one; codes are row-major.
    """

    def __init__(self, config: MagvitConfig = MagvitConfig()):  # noqa: B008, frozen
        super().__init__()
        self.config = config
        self.encoder, self.decoder, self.quantize = Encoder(config), Decoder(config), Quantizer(config.bits)

    @property
    def codebook_size(self) -> int:
        return 2**self.config.bits

    @property
    def image_size(self) -> int:
        return self.config.image_size

    @property
    def grid(self) -> int:
        return self.image_size // self.config.cell

    @property
    def n_tokens(self) -> int:
        return self.grid**2

    @property
    def device(self) -> torch.device:
        return self.decoder.conv_in.weight.device

    def signs(self, codes: torch.Tensor) -> torch.Tensor:
        """codes [B, h, w] -> ±1 [B, bits, h, w]."""
        return self.quantize.embedding[codes].permute(0, 3, 1, 2)

    @torch.inference_mode()
    def encode(self, images: np.ndarray, batch_size: int = 8, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """uint8 [B, H, W, 3] -> codes int64 [B, L]. Raises ValueError for any other size or type; `fit` helps."""
        images, (rows, columns) = np.asarray(images), grid or (self.grid, self.grid)
        expected = (rows * self.config.cell, columns * self.config.cell, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"tokenizer.encode: expected uint8 pictures [B, {', '.join(map(str, expected))}], "
                f"got {images.dtype} {list(images.shape)}; resize or convert them first, as with cotlib.magvit.fit"
            )
        codes = [torch.empty((0, rows * columns), dtype=torch.long)]
        for chunk in torch.from_numpy(np.ascontiguousarray(images)).split(batch_size):
            codes.append(self.quantize(self.encoder(to_pixels(chunk.to(self.device)))).flatten(1).cpu())
        return torch.cat(codes)

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor, batch_size: int = 8, grid: tuple[int, int] | None = None) -> np.ndarray:
        """codes [B, L] -> uint8 [B, H, W, 3], truncated as Show-o does. Raises ValueError for codes out of range."""
        codes, (rows, columns) = torch.as_tensor(codes), grid or (self.grid, self.grid)
        if codes.ndim != 2 or codes.shape[1] != rows * columns:
            raise ValueError(f"tokenizer.decode: expected codes [B, {rows * columns}], got {list(codes.shape)}")
        if len(codes) and not (0 <= int(codes.min()) and int(codes.max()) < self.codebook_size):
            raise ValueError(
                f"tokenizer.decode: codes must lie in 0..{self.codebook_size - 1}, "
                f"got {int(codes.min())}..{int(codes.max())}; were mask tokens left in?"
            )
        images = [np.empty((0, rows * self.config.cell, columns * self.config.cell, 3), np.uint8)]
        for chunk in codes.split(batch_size) if len(codes) else ():
            images.append(to_images(self.decoder(self.signs(chunk.view(-1, rows, columns).to(self.device)))))
        return np.concatenate(images)

    # --- Files ---

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """As `from_pretrained` and, with the published sizes, the official class read it."""
        checkpoint.save(self, folder, {"_class_name": "MAGVITv2", **asdict(self.config)}, dtype)

    @classmethod
    def from_pretrained(cls, folder: Path, image_size: int | None = None) -> Magvit:
        """Load a folder written by `save_pretrained`, or the published one, whose config.json gives no sizes.

        image_size: px, if it is not that of the configuration: 512 for the 512 px Show-o, whose tokenizer is the same.
        Raises IncompleteError for files that are missing, CorruptError for torn ones, ForeignError for weights of other
        sizes, and ValueError for pickled weights.
        """
        folder = Path(folder)
        file, stored = checkpoint.weights_file(folder), checkpoint.read_config(folder)
        known = {k: v for k, v in stored.items() if k in MagvitConfig.__dataclass_fields__}
        sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in (known or _sizes_of(file)).items()}
        try:
            config = MagvitConfig(**sizes)
        except (TypeError, ValueError) as error:
            raise CorruptError(f"{folder / 'config.json'}: {error}; fetch the file again") from error
        with torch.device("meta"):
            model = cls(config if image_size is None else replace(config, image_size=image_size))
        checkpoint.fill(model, file)
        return model.eval()


def _sizes_of(file: Path) -> dict:
    """The published config.json holds no sizes: the weights tell them, but for the pictures' own."""
    shapes = checkpoint.shapes_of(file)
    channels, bits = (shapes.get(f"encoder.{name}.weight", (0,))[0] for name in ("conv_in", "quant_conv"))
    if not channels or not bits:
        return {}  # of another network: `fill` says what is missing
    sizes = {"channels": channels, "bits": bits}
    for side, way in (("encoder", "down"), ("decoder", "up")):
        widths, blocks = [], []
        while level := [name for name in shapes if name.startswith(f"{side}.{way}.{len(widths)}.block.")]:
            after = [shapes[name][0] for name in level if name.endswith("conv2.bias")]
            widths.append(max(after, default=0) // channels)
            blocks.append(len({name.split(".")[4] for name in level}))
        sizes |= {f"{side}_widths": tuple(widths), f"{side}_blocks": tuple(blocks)}
    return sizes


# --- Pictures ---------------------------------------------------------------------------------------------------


def fit(image: Image.Image, size: int) -> np.ndarray:
    """A picture of any shape -> uint8 [size, size, 3]: shorter side resized to `size` px, bicubic, centre cropped.

    The same bytes as torchvision's Resize and CenterCrop, which Show-o's pre-processing uses.
    """
    image = image.convert("RGB")
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1], as Show-o's pre-processing."""
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def to_images(pixels: torch.Tensor) -> np.ndarray:
    """[B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3], truncated."""
    return ((pixels + 1) / 2).clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).cpu().numpy()
