"""Supervised fine-tuning with TRL's SFTTrainer: of judges on answers, of the generator on corrections.

One code path for the pocket models and for those of 1.45B and 7B. The judge's collator makes the inputs that the judge
itself reads (`Judge.batch`), several questions packed beside one picture, and labels only the answers; the trainer's
own loss, logging and low-rank adapters stay as they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTConfig, SFTTrainer

from .judge import Judge
from .models import CHECKPOINTS
from .precision import has_bf16
from .progress import progress
from .search import Paint
from .store import read_json, write_json

# What the adapters of a 7B judge change: the projections of the language model. The eye and the projector stay.
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


SECONDS = "seconds.json"  # beside the checkpoints


@dataclass(frozen=True)
class TuneOptions:
    epochs: float = 3.0
    batch_size: int = 32  # pictures
    learning_rate: float = 1e-4
    lora_rank: int | None = None  # None: every weight is trained
    seed: int = 0  # of the order of the data

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and self.batch_size > 0 and self.learning_rate > 0):
            raise ValueError(f"epochs, batch_size and learning_rate must be positive, got {self}")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"lora_rank must be at least 1, or None to train every weight, got {self.lora_rank}")


@dataclass(frozen=True)
class Collator:
    """Rows {"codes", "questions", "answers"} to the inputs of the judge's model; pictures are painted on demand.

    A question is a text, or a list of turns.
    """

    judge: Judge
    paint: Paint

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = self.paint(torch.tensor([row["codes"] for row in rows]))
        questions = [[q if isinstance(q, str) else tuple(q) for q in row["questions"]] for row in rows]
        return self.judge.batch(images, questions, [row["answers"] for row in rows])


class RowTrainer(SFTTrainer):
    """SFTTrainer over rows that a collator makes into inputs: there is no text to prepare beforehand."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = self.train_dataset.column_names

    def _load_from_checkpoint(self, checkpoint, model=None):
        """The model's own loader, which knows the names that its layout has on disk; the trainer's would skip them."""
        if not isinstance(self.model, PreTrainedModel):  # adapters
            return super()._load_from_checkpoint(checkpoint, model)
        saved = type(self.model).from_pretrained(checkpoint, dtype=self.model.dtype, use_safetensors=True)
        self.model.load_state_dict(saved.state_dict())


class Advance(TrainerCallback):
    """Tells a progress of every step of the optimizer, and notes beside the checkpoints how long they took.

    It keeps the trainer from a checkpoint after the last step: a training that goes on from there takes one too many.
    """

    def __init__(self, advance: Callable[[int], None]):
        self.advance = advance

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun = time.perf_counter()
        if state.global_step:
            getattr(self.advance, "before", self.advance)(state.global_step)
            self.begun -= seconds_before(Path(args.output_dir))

    def on_save(self, args, state, control, **kwargs):
        write_json(Path(args.output_dir) / SECONDS, time.perf_counter() - self.begun)

    def on_step_end(self, args, state, control, **kwargs):
        self.advance(1)
        if state.global_step >= state.max_steps:
            control.should_save = False


def fine_tune(judge: Judge, data: Dataset, paint: Paint, options: TuneOptions, folder: Path) -> list[dict[str, float]]:
    """Train the judge in place on rows of `Collator`; raises and returns as `supervise`."""
    judge.model, log = supervise(
        judge.model, judge.tokenizer, data, Collator(judge, paint), options, folder, LORA_TARGETS
    )
    return log


def supervise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    data: Dataset,
    collator: Callable[[list[dict]], dict[str, torch.Tensor]],
    options: TuneOptions,
    folder: Path,
    targets: str,
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """Train a model on rows that the collator makes into inputs and labels.

    Returns it (adapters on the modules `targets` merged) and the log, one record {"step", "loss",
    "mean_token_accuracy", ...} a while. torch's global random state is as before afterwards. folder: where the trainer
    may write; a training that was killed goes on from its last checkpoint there, and who calls removes `CHECKPOINTS`
    at the end. Raises ValueError for no data.
    """
    if not len(data):
        raise ValueError("no examples to learn from")
    n_steps = int(np.ceil(len(data) / options.batch_size) * options.epochs)
    checkpoints, drop_last = Path(folder) / CHECKPOINTS, len(data) >= options.batch_size
    settings = on_one_device(_settings(model, options, n_steps, checkpoints, drop_last))
    with torch.random.fork_rng(), progress(n_steps, "fine-tuning", "steps") as advance:
        trainer = RowTrainer(
            model=model,
            args=settings,
            processing_class=tokenizer,
            data_collator=collator,
            train_dataset=data,
            peft_config=lora(options.lora_rank, targets),
            callbacks=[Advance(advance)],
        )
        trainer.remove_callback(PrinterCallback)  # the progress says enough, the log is returned
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    model = model if options.lora_rank is None else trainer.model.merge_and_unload()
    history = (record for record in trainer.state.log_history if "loss" in record)
    # The trainer counts tokens as the sum of the mask, which is no number where the mask holds -inf.
    return model.eval(), [{k: v for k, v in record.items() if k != "num_tokens"} for record in history]


def log_and_save(n_steps: int) -> dict[str, int]:
    """How often a trainer logs, about 25 times, and saves, every fifth time: a record is a mean over the steps since
    the last one, of which a checkpoint in between would forget some."""
    often = max(1, n_steps // 25)
    return {"logging_steps": often, "save_steps": 5 * often}


def last_checkpoint(folder: Path) -> str | None:
    """The trainer's latest checkpoint in a folder that was written to its end, which is its state; None for none.

    One that a kill left half done would stop every later try.
    """
    whole = []
    for path in Path(folder).glob(f"checkpoint-*/{TRAINER_STATE_NAME}"):
        try:
            whole.append((json.loads(path.read_text())["global_step"], str(path.parent)))
        except (ValueError, KeyError):
            continue
    return max(whole)[1] if whole else None


def seconds_before(checkpoints: Path) -> float:
    """How long it took to train up to the last checkpoint; 0 where there is none to go on from."""
    noted = Path(checkpoints) / SECONDS
    return read_json(noted) if noted.is_file() and last_checkpoint(checkpoints) else 0.0


def on_one_device(settings: TrainingArguments) -> TrainingArguments:
    """Of several GPUs one is used, however many torch sees: TRL refuses what transformers would do with them."""
    settings._n_gpu = min(1, settings.n_gpu)
    return settings


def _settings(model: PreTrainedModel, options: TuneOptions, n_steps: int, folder: Path, drop_last: bool) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        max_steps=n_steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(n_steps - 1, max(1, n_steps // 20)),  # the first step of a warm-up changes nothing
        max_length=None,
        bf16=has_bf16(model.device.type),
        activation_checkpointing=options.lora_rank is not None,
        **log_and_save(n_steps),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_total_limit=1,
        report_to=[],
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=False,  # the collator's tensors lie on the device already
        disable_tqdm=True,
        seed=options.seed,
        dataloader_drop_last=drop_last,
    )


def lora(rank: int | None, targets: str):
    """The configuration of low-rank adapters of these modules (a regular expression); None for no rank."""
    if rank is None:
        return None
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
