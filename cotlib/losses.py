"""Show-o's training losses on masked image tokens, written out: the reference that a trainer is held to.

A picture's tokens are masked at random and predicted from the others and the text, each where it stands (no shift):

    masked_nll    -mean log p(token), Show-o's text-to-image loss (arXiv:2408.12528)
    image_logps   sum log p(token) of each picture, what DPO compares (train_dpo.py of arXiv:2501.13926)
    dpo_loss      -log sigmoid(beta * difference of log-ratios), Eq. 7 of arXiv:2305.18290

Differences from upstream, each tested; `AS_RELEASED` and `mask_sharing="independent"` switch them off:
1. Only masked tokens count. Upstream counts <|soi|> and <|eoi|> too, which are never masked: `edges=True`.
2. Probabilities are over the codebook, as in decoding. Upstream's are over the whole vocabulary: `vocabulary="full"`;
   so are those of DPO here, whose log-probabilities TRL computes.
3. The two pictures of a pair are masked alike, so that their difference is not one of the number of masked tokens.
   Upstream draws ratio, mask and dropped caption for each: `mask_sharing="independent"`.

Left out: the reward term of the released DPO loss, a constant through which no gradient flows; text losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .showo import Showo

VOCABULARIES = ("codebook", "full")
MASK_SHARINGS = ("shared", "independent")
CAPTION_DROPOUT = 0.1  # share of the captions that training replaces by the empty one


@dataclass(frozen=True)
class LossOptions:
    vocabulary: str = "codebook"  # of the softmax
    edges: bool = False  # True: <|soi|> and <|eoi|> are predicted too, though the model sees them

    def __post_init__(self) -> None:
        if self.vocabulary not in VOCABULARIES:
            raise ValueError(f"unknown vocabulary {self.vocabulary!r}; known: {', '.join(VOCABULARIES)}")
        if self.edges and self.vocabulary != "full":
            raise ValueError("edges are no codes: with edges=True, vocabulary must be 'full'")


OURS, AS_RELEASED = LossOptions(), LossOptions(vocabulary="full", edges=True)


# --- Masks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch of pictures, uniform in [0, 1), in the order upstream draws them."""

    timestep: torch.Tensor  # [B]
    order: torch.Tensor  # [B, L]
    dropout: torch.Tensor  # [B]

    @property
    def masked(self) -> torch.Tensor:
        """Bool [B, L], True = masked: of each row max(1, round(L * cos(pi/2 * timestep))) tokens."""
        n = (self.order.shape[1] * torch.cos(self.timestep * math.pi * 0.5)).round().clamp(min=1)
        return self.order.argsort(-1) < n[:, None]

    @property
    def dropped(self) -> torch.Tensor:
        """Bool [B], True = trained without its caption."""
        return self.dropout < CAPTION_DROPOUT


def draw(B: int, L: int, rng: torch.Generator) -> Draws:
    return Draws(torch.rand(B, generator=rng), torch.rand(B, L, generator=rng), torch.rand(B, generator=rng))


def draw_pair(B: int, L: int, rng: torch.Generator, mask_sharing: str = "shared") -> tuple[Draws, Draws]:
    """Draws for the chosen and the rejected pictures of B pairs: the same ones, or independent ones as released."""
    if mask_sharing not in MASK_SHARINGS:
        raise ValueError(f"unknown mask_sharing {mask_sharing!r}; known: {', '.join(MASK_SHARINGS)}")
    chosen = draw(B, L, rng)
    return chosen, chosen if mask_sharing == "shared" else draw(B, L, rng)


# --- Log-probabilities ------------------------------------------------------------------------------------------


def token_logps(
    model: Showo,
    text_ids: torch.Tensor,
    codes: torch.Tensor,
    masked: torch.Tensor,
    options: LossOptions = OURS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p of the true token, 0 where it does not count, float32; whether it counts, bool), both [B, L + 2].

    The first and the last place are <|soi|> and <|eoi|>. text_ids [B, T] of `Showo.text_ids`, codes int64 [B, L],
    masked bool [B, L], True = hidden from the model. Raises ValueError where these do not fit together, and where
    nothing of a picture is masked.
    """
    text_ids, codes, masked = (given.to(model.device) for given in (text_ids, codes, masked))
    _check(text_ids, codes, masked)
    ids = model.sequence(text_ids, codes, masked)
    truth = model.sequence(text_ids[:, :0], codes, torch.zeros_like(masked))  # [B, L + 2]
    counts = F.pad(masked, (1, 1), value=options.edges)
    hidden = _hidden(model, text_ids, ids)[counts]  # [M, D]
    if options.vocabulary == "full":
        logits, target = model.showo.lm_head(hidden), truth[counts]
    else:
        logits, target = model.head(hidden), truth[counts] - model.config.image_offset
    logps = -F.cross_entropy(logits.float(), target, reduction="none")
    return torch.zeros(truth.shape, device=logps.device).masked_scatter(counts, logps), counts


def _check(text_ids: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor) -> None:
    if masked.dtype != torch.bool or masked.shape != codes.shape or len(text_ids) != len(codes):
        raise ValueError(
            f"expected codes [B, L], a bool mask of that shape and B texts, got {list(codes.shape)}, {masked.dtype} "
            f"{list(masked.shape)} and {len(text_ids)} texts"
        )
    if not masked.any(-1).all():
        row = int((~masked.any(-1)).nonzero()[0])
        raise ValueError(f"nothing of picture {row} is masked, so nothing of it can be predicted; `Draws` masks some")


def _hidden(model: Showo, text_ids: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states of <|soi|>, image and <|eoi|>: [B, L + 2, D]."""
    allowed = model.attention_mask(text_ids)
    added = torch.zeros(allowed.shape, device=ids.device).masked_fill(~allowed, -torch.inf)
    out = model.showo.model(input_ids=ids, attention_mask=added, use_cache=False)
    return out.last_hidden_state[:, text_ids.shape[1] :]


# --- Losses -----------------------------------------------------------------------------------------------------


def masked_nll(
    model: Showo,
    text_ids: torch.Tensor,
    codes: torch.Tensor,
    masked: torch.Tensor,
    options: LossOptions = OURS,
) -> torch.Tensor:
    """Mean over every token that counts, of all pictures together: scalar. Raises as `token_logps`."""
    logps, counts = token_logps(model, text_ids, codes, masked, options)
    return -logps.sum() / counts.sum()


def image_logps(
    model: Showo,
    text_ids: torch.Tensor,
    codes: torch.Tensor,
    masked: torch.Tensor,
    options: LossOptions = OURS,
) -> torch.Tensor:
    """Sum over the tokens of each picture that count, not divided by their number: float32 [B]. Raises likewise."""
    return token_logps(model, text_ids, codes, masked, options)[0].sum(-1)


def dpo_loss(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, and the implicit rewards of the chosen and the rejected pictures; all [B], as the `image_logps` given.

    The rewards are detached. Raises ValueError for beta <= 0.
    """
    if not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    chosen, rejected = beta * (policy_chosen - reference_chosen), beta * (policy_rejected - reference_rejected)
    return -F.logsigmoid(chosen - rejected), chosen.detach(), rejected.detach()
