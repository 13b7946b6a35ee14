"""The pocket image tokenizer: 96 x 96 px <-> 64 lookup-free codes, behind the protocol that MAGVIT-v2 also has.

Lookup-free quantization as in MAGVIT-v2 (arXiv:2310.05737): a code is a sign pattern, channel 0 its most significant
bit, 0 counts as negative. Differences from MAGVIT-v2, both on purpose:

1. The encoder sees exactly one cell, so that the same cell of the same sprite always has the same code. With an
   encoder that looks at neighbours, a sprite is another word in every sentence, and a small generator learns none.
2. The decoder may look around: it has to say from a cell's neighbours which of the look-alikes is meant.
"""

from __future__ import annotations

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from torch.nn import functional as F

from ..precision import autocast


class ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


class PocketTokenizer(nn.Module, PyTorchModelHubMixin):
    """`encode` pictures to codes, `decode` codes to pictures; every cell of `cell` px is one code of `bits` bits."""

    def __init__(self, cell: int = 12, grid: int = 8, bits: int = 12, width: int = 192, hidden: int = 512):
        super().__init__()
        self.cell, self.grid, self.bits = cell, grid, bits
        fine = cell // 2  # the decoder works at one and at two positions a cell, then paints fine x fine px each
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(cell),
            nn.Conv2d(3 * cell * cell, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, bits, 1),
        )
        half = width // 2
        self.decoder = nn.Sequential(
            nn.Conv2d(bits, width, 3, padding=1),
            *[ResidualBlock(width) for _ in range(3)],
            nn.Conv2d(width, 4 * half, 1),
            nn.PixelShuffle(2),
            *[ResidualBlock(half) for _ in range(3)],
            nn.GroupNorm(8, half),
            nn.SiLU(),
            nn.Conv2d(half, 3 * fine * fine, 3, padding=1),
            nn.PixelShuffle(fine),
        )

    @property
    def codebook_size(self) -> int:
        return 2**self.bits

    @property
    def n_tokens(self) -> int:
        return self.grid * self.grid

    @property
    def image_size(self) -> int:
        return self.cell * self.grid

    def quantize(self, z: torch.Tensor) -> torch.Tensor:
        """[B, bits, H, W] -> codes int64 [B, H, W]."""
        weights = 2 ** torch.arange(self.bits - 1, -1, -1, device=z.device)
        return ((z > 0).long() * weights[:, None, None]).sum(1)

    def signs(self, codes: torch.Tensor) -> torch.Tensor:
        """codes [B, H, W] -> ±1 [B, bits, H, W]."""
        shifts = torch.arange(self.bits - 1, -1, -1, device=codes.device)
        return ((codes[:, None] >> shifts[:, None, None]) & 1).float() * 2 - 1

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Training pass. pixels [B, 3, H, W] in [-1, 1] -> reconstruction, and z before the sign [B, bits, h, w]."""
        z = torch.tanh(self.encoder(pixels).float())
        signs = torch.where(z > 0, 1.0, -1.0)
        return self.decoder(z + (signs - z).detach()), z

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> torch.Tensor:
        """uint8 [B, H, W, 3] -> codes int64 [B, L], row-major. Raises ValueError for any other size or type."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"tokenizer.encode: expected uint8 pictures [B, {self.image_size}, {self.image_size}, 3], "
                f"got {images.dtype} {list(images.shape)}; resize or convert them first"
            )
        return self.quantize(self.encoder(to_pixels(images, self.device))).flatten(1).cpu()

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor, batch_size: int = 128) -> np.ndarray:
        """codes [B, L] -> uint8 [B, H, W, 3], truncated as Show-o does. Raises ValueError for codes out of range."""
        codes = torch.as_tensor(codes)
        if codes.ndim != 2 or codes.shape[1] != self.n_tokens:
            raise ValueError(f"tokenizer.decode: expected codes [B, {self.n_tokens}], got {list(codes.shape)}")
        if len(codes) and not (0 <= int(codes.min()) and int(codes.max()) < self.codebook_size):
            raise ValueError(
                f"tokenizer.decode: codes must lie in 0..{self.codebook_size - 1}, "
                f"got {int(codes.min())}..{int(codes.max())}; were mask tokens left in?"
            )
        images = [np.empty((0, self.image_size, self.image_size, 3), np.uint8)]
        for chunk in codes.split(batch_size):
            signs = self.signs(chunk.view(-1, self.grid, self.grid).to(self.device))
            # One picture alone has two memory formats at once, is painted in the other, and rounds elsewhere.
            signs = signs.repeat(2 if len(signs) == 1 else 1, 1, 1, 1)
            with autocast(signs.device.type):
                pixels = self.decoder(signs.contiguous(memory_format=torch.channels_last))
            images.append(to_images(pixels[: len(chunk)].float()))
        return np.concatenate(images)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def to_pixels(images: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: torch.Tensor) -> np.ndarray:
    """[B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3], truncated."""
    return ((pixels + 1) / 2).clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).cpu().numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of the mean squared error over all pictures, dB; uint8 [B, H, W, 3]."""
    error = np.square(a.astype(np.float32) - b.astype(np.float32)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-12)))
