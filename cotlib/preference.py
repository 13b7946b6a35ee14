"""Preference alignment of the generator: DPO on masked image tokens, with TRL (Sec. 3.3, arXiv:2501.13926).

The log-probability of a picture is that of its masked tokens given the others and the prompt, for a random mask; policy
and reference see the same masks. TRL's `DPOTrainer` computes it once a collator hands it masked inputs, Show-o's
attention mask and `shift_labels`, the true tokens at the masked positions; its loss is used as it is.

Differences from the released code (train_dpo.py of the paper's repository), each an option:
1. The two pictures of a pair share caption dropout and mask, so that their difference is not one of masks;
   `mask_sharing="independent"` draws them apart, as released.
2. <soi> and <eoi>, which are never masked, are not scored; released, both are, at a cost of about nothing.
3. Guidance by a verifier has a gradient: `guidance="policy-gradient"` raises the log-probability of freshly sampled
   pictures that the verifier likes more than their prompt's average. `guidance="detached"` adds the released term, a
   number without a gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from .decode import DecodeOptions, decode, final
from .errors import CotlibError, ForeignError
from .losses import MASK_SHARINGS, draw, image_logps
from .precision import autocast, has_bf16
from .prompts import TASKS, Prompt
from .search import Pool, Score
from .seeds import sample_seed
from .showo import Showo
from .tuning import Advance, last_checkpoint, log_and_save, lora, on_one_device

GUIDANCE = ("none", "policy-gradient", "detached")
REWARD = "guide/reward"  # of a step, in the trainer's history
COLUMNS = ["prompt", "chosen_codes", "rejected_codes", "mask_seed"]
# The projections of Phi; embeddings and head stay, as the mask and image tokens are already known.
LORA_TARGETS = r".*layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|dense)|mlp\.(fc1|fc2))"


@dataclass(frozen=True)
class PreferenceOptions:
    epochs: int = 1  # passes over the pairs, each with other masks
    batch_size: int = 32  # pairs
    learning_rate: float = 3e-5
    beta: float = 0.1
    mask_sharing: str = "shared"
    masks_per_pair: int = 1  # each a term of the loss of its own
    per_token: bool = False  # log-probabilities divided by the number of masked tokens
    sft_weight: float = 0.0  # of the chosen picture's mean negative log-probability a token, added to the loss
    caption_dropout: float = 0.1
    lora_rank: int | None = None  # None: every weight is trained
    guidance: str = "none"
    guidance_weight: float = 1.0
    n_guided_prompts: int = 2  # prompts that are sampled for each step of the optimizer
    n_guided_images: int = 8  # pictures of each
    seed: int = 0  # of order, masks and samples

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mask_sharing", self.mask_sharing, MASK_SHARINGS),
            ("guidance", self.guidance, GUIDANCE),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        positive = ("epochs", "batch_size", "learning_rate", "beta", "masks_per_pair")
        if bad := [name for name in positive if not getattr(self, name) > 0]:
            raise ValueError(f"{', '.join(bad)} must be positive, got {self}")
        if self.sft_weight < 0:
            raise ValueError(f"sft_weight must be >= 0, got {self.sft_weight}")
        if not 0 <= self.caption_dropout < 1:
            raise ValueError(f"caption_dropout must lie in 0..1 and below 1, got {self.caption_dropout}")
        if self.guidance != "none" and self.n_guided_images < 2:
            raise ValueError("n_guided_images must be at least 2: a picture is compared with its prompt's average")


# --- Pairs ------------------------------------------------------------------------------------------------------


def preference_pairs(
    pool: Pool, labels: Mapping[str, dict], seed: int, per_prompt: int = 1, neighbours: bool = True
) -> list[dict[str, Any]]:
    """Right and wrong pictures of the same text, drawn at random: {"source", "task", "prompt", "chosen_codes",
    "rejected_codes"}.

    A text whose pictures are all right or all wrong has none; of one text no picture is in two pairs. The paper takes
    one pair a prompt. With `neighbours`, the pictures of a prompt are paired for the texts one clause away as well that
    they were labelled for: a cat left of a dog is wrong for "a cat right of a dog", but what that text asks for is
    often among its pictures. labels: as `ranking.label_pool` gives them; `source` is the id of the pictures' prompt.
    """
    pairs = []
    for prompt in pool.prompts:
        label, codes = labels[prompt.id], pool.codes[prompt.id]
        right = np.array(label["right"])
        for q, text in enumerate(label["asked"] if neighbours else label["asked"][:1]):
            rng = np.random.default_rng(sample_seed(seed, prompt.id, q, "pairs"))
            chosen, rejected = (rng.permutation(np.flatnonzero(right[:, q] == kind))[:per_prompt] for kind in (1, 0))
            pairs += [
                {
                    "source": prompt.id,
                    "task": prompt.task,
                    "prompt": text,
                    "chosen_codes": codes[a].tolist(),
                    "rejected_codes": codes[b].tolist(),
                }
                for a, b in zip(chosen, rejected, strict=False)
            ]
    return pairs


def split_pairs(pairs: Sequence[dict], held_out: float = 0.1) -> tuple[list[dict], list[dict]]:
    """Training and held-out pairs; the pictures of a prompt stay together, every 1/`held_out`-th prompt is held out."""
    sources = list(dict.fromkeys(pair["source"] for pair in pairs))
    apart = set(sources[:: max(2, round(1 / held_out))]) if len(sources) > 1 else set()
    return [p for p in pairs if p["source"] not in apart], [p for p in pairs if p["source"] in apart]


def count_pairs(pairs: Sequence[dict]) -> dict[str, int]:
    """Pairs of each task."""
    return {task: sum(pair["task"] == task for pair in pairs) for task in TASKS}


def _dataset(pairs: Sequence[dict], options: PreferenceOptions, n_copies: int, seed: int) -> Dataset:
    """Every pair `n_copies` times, each with the seed of its mask, so that a resumed training sees the same masks."""
    rows = [
        {name: pair[name] for name in COLUMNS[:3]} | {"mask_seed": sample_seed(seed, str(i), copy_, "mask")}
        for copy_ in range(n_copies)
        for i, pair in enumerate(pairs)
    ]
    return Dataset.from_list(rows)


# --- The collator -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskedPairs:
    """Rows of COLUMNS to what `DPOTrainer` forwards to policy and reference: [chosen; rejected], side by side."""

    model: Showo
    options: PreferenceOptions

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts, codes, masks = [], [], []
        for side in ("chosen_codes", "rejected_codes"):
            for row in rows:
                apart = self.options.mask_sharing == "independent" and side == "rejected_codes"
                draws = draw(1, len(row[side]), torch.Generator().manual_seed(row["mask_seed"] ^ int(apart)))
                texts.append("" if draws.dropout < self.options.caption_dropout else row["prompt"])
                masks.append(draws.masked)
                codes.append(row[side])
        return masked_inputs(self.model, texts, torch.tensor(codes), torch.cat(masks))


def masked_inputs(model: Showo, texts: list[str], codes: torch.Tensor, masked: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inputs of Phi and labels in place, not shifted: -100 except the true tokens at masked positions.

    codes int64 [B, L], masked bool [B, L].
    """
    text_ids, device = model.text_ids(texts), model.device
    codes, masked = codes.to(device), masked.to(device)
    labels = (codes + model.config.image_offset).masked_fill(~masked, -100)
    T = text_ids.shape[1]
    labels = nn.functional.pad(labels, (T + 1, 1), value=-100)
    return {
        "input_ids": model.sequence(text_ids, codes, masked),
        "attention_mask": model.as_mask(model.attention_mask(text_ids)),
        "shift_labels": labels,
        "completion_mask": (labels != -100).long(),
    }


# --- Guidance by a verifier -------------------------------------------------------------------------------------


@dataclass
class Guide:
    """Samples pictures of training prompts from the policy as it is, and says which of them to make likelier."""

    model: Showo
    prompts: Sequence[Prompt]
    paint: Callable[[torch.Tensor], np.ndarray]
    score: Score  # a verifier's P(yes); None counts as 0
    decoding: DecodeOptions
    options: PreferenceOptions
    rewards: list[float] = field(default_factory=list)  # mean P(yes) of each step

    def loss(self, step: int) -> torch.Tensor:
        """The guidance term at a step of the optimizer; its gradient is zero if `guidance` is "detached"."""
        o = self.options
        n, G = o.n_guided_prompts, o.n_guided_images
        asked = [self.prompts[(step * n + i) % len(self.prompts)] for i in range(n) for _ in range(G)]
        seeds = [sample_seed(o.seed, p.id, step * G + i % G, "guidance") for i, p in enumerate(asked)]
        texts = [p.text for p in asked]
        with torch.no_grad():
            codes = final(decode(self.model, texts, seeds, self.decoding)).codes.clone().to(self.model.device)
            reward = torch.tensor([p or 0.0 for p in self.score(self.paint(codes), asked)], device=self.model.device)
        self.rewards.append(float(reward.mean()))
        if o.guidance == "detached":
            return -reward.clamp(min=1e-7).log().mean()
        advantage = reward.view(n, G) - reward.view(n, G).mean(1, keepdim=True)
        rng = torch.Generator().manual_seed(sample_seed(o.seed, "guidance", step, "mask"))
        masked = draw(*codes.shape, rng).masked.to(codes.device)
        with autocast(codes.device.type):  # the trainer's covers its own loss only
            log_p = image_logps(self.model, self.model.text_ids(texts), codes, masked) / masked.sum(1)
        return -(advantage.flatten() * log_p).mean()


# --- Training ---------------------------------------------------------------------------------------------------


class MaskedDPOTrainer(DPOTrainer):
    """DPOTrainer over rows that a collator masks; with a guide, whose term is added to the loss."""

    guide: Guide | None = None

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = COLUMNS

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        term = self._guided() if self.guide is not None and model.training else None
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if not torch.isfinite(loss):
            raise CotlibError(
                f"DPO: the loss is {loss.item()} in the batch of step {self.state.global_step + 1}; "
                "the last checkpoint is kept. Lower learning_rate or beta, or leave out the pairs of that batch"
            )
        if term is None:
            return result
        return (loss + term, *result[1:]) if return_outputs else loss + term

    def _guided(self) -> torch.Tensor:
        """The guide's term. Its gradient is there already: the graphs of both losses do not fit into memory together
        where that of the pairs alone takes half of it."""
        term = self.guide.options.guidance_weight * self.guide.loss(self.state.global_step)
        if term.requires_grad:
            with torch.autocast(term.device.type, enabled=False):  # the trainer's, which is for the loss only
                self.accelerator.backward(term)
        # The history goes into checkpoints, so that a resumed training still knows the steps before.
        self.state.log_history.append({"step": self.state.global_step + 1, REWARD: self.guide.rewards[-1]})
        return term.detach()


@dataclass(frozen=True)
class Aligned:
    """What a training left: the trainer's log, and on held-out pairs how often chosen beats rejected."""

    log: list[dict[str, float]]  # {"step", "loss", "rewards/accuracies", "rewards/margins", ...}
    pair_accuracy: float | None  # None without held-out pairs
    rewards: list[float]  # of the guide, by step


def align(
    model: Showo,
    pairs: Sequence[dict],
    held_out: Sequence[dict],
    options: PreferenceOptions,
    folder: Path,
    reference: Showo | None = None,
    guide: Guide | None = None,
    advance: Callable[[int], None] = lambda n: None,
    checkpoints: bool = True,
) -> Aligned:
    """Train the generator in place on preference pairs; it is its own reference unless another is given.

    A training that was killed goes on from its last checkpoint under `folder`, with the same batches and masks;
    without `checkpoints`, of 17 GB at full size, it would begin anew.
    torch's global random state is as before afterwards.
    Raises ValueError for no pairs, ForeignError for a reference or pairs of another vocabulary, CotlibError for a loss
    that is not finite.
    """
    _check(model, pairs, reference)
    if options.guidance != "none" and guide is None:
        raise ValueError(f"guidance {options.guidance!r} needs a guide: prompts to sample and a verifier to ask")
    data = _dataset(pairs, options, options.epochs * options.masks_per_pair, options.seed)
    n_steps = -(-len(data) // options.batch_size)
    apart = _dataset(held_out, options, 4, options.seed + 1) if held_out else None
    with torch.random.fork_rng():
        trainer = MaskedDPOTrainer(
            model=model.showo,
            # Before the trainer replaces the forward pass of the policy, which a later copy would share.
            ref_model=copy.deepcopy((reference or model).showo) if options.lora_rank is None else None,
            args=on_one_device(_settings(model, options, n_steps, folder, checkpoints)),
            processing_class=model.tokenizer,
            data_collator=MaskedPairs(model, options),
            train_dataset=data,
            eval_dataset=apart,
            peft_config=lora(options.lora_rank, LORA_TARGETS),
            callbacks=[Advance(advance)],
        )
        trainer.guide = guide
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        held = trainer.evaluate()["eval_rewards/accuracies"] if apart else None
    if options.lora_rank is not None:
        model.showo = trainer.model.merge_and_unload()
    model.showo.__dict__.pop("forward", None)  # TRL's own, which a saved or copied model must not keep
    model.eval()
    history = trainer.state.log_history
    # The trainer counts tokens as the sum of the mask, which is no number where the mask holds -inf.
    log = [{k: v for k, v in record.items() if k != "num_tokens"} for record in history if "loss" in record]
    return Aligned(log, held, [record[REWARD] for record in history if REWARD in record])


def _check(model: Showo, pairs: Sequence[dict], reference: Showo | None) -> None:
    if not pairs:
        raise ValueError("no usable pair: the pictures of every prompt are all right or all wrong; decode more of them")
    if reference is not None and reference.config.vocab_size != model.config.vocab_size:
        raise ForeignError(
            f"the reference has a vocabulary of {reference.config.vocab_size}, the policy one of "
            f"{model.config.vocab_size}; take a reference of the same family"
        )
    L, size = model.config.num_vq_tokens, model.config.codebook_size
    for i, pair in enumerate(pairs):
        for side in ("chosen_codes", "rejected_codes"):
            if len(pair[side]) != L or not 0 <= min(pair[side]) <= max(pair[side]) < size:
                raise ForeignError(
                    f"pair {i}, {side}: expected {L} codes of 0..{size - 1}, got {len(pair[side])} of "
                    f"{min(pair[side])}..{max(pair[side])}: made with another tokenizer; decode and label pairs anew"
                )


def _settings(
    model: Showo, options: PreferenceOptions, n_steps: int, folder: Path, checkpoints: bool = True
) -> DPOConfig:
    return DPOConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=2 * options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=n_steps // 10,
        beta=options.beta,
        loss_type=["sigmoid_norm" if options.per_token else "sigmoid", *(["sft"] if options.sft_weight else [])],
        loss_weights=[1.0, options.sft_weight] if options.sft_weight else None,
        max_length=None,
        bf16=has_bf16(model.device.type),
        activation_checkpointing=False,
        **log_and_save(n_steps),
        logging_nan_inf_filter=False,
        save_strategy="steps" if checkpoints else "no",
        save_total_limit=1,
        report_to=[],
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=False,  # the collator's tensors lie on the device already
        disable_tqdm=True,
        seed=options.seed,
    )
