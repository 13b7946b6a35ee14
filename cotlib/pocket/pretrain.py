"""Train the pocket models from scratch: tokenizer, detector, generator, judge. Two CPU cores and a budget are enough;
the generator trains on a GPU where there is one.

    cotlib pretrain tokenizer --minutes 30
    cotlib pretrain detector  --minutes 30      # after the tokenizer: it learns from its damage
    cotlib pretrain generator --minutes 180     # after the tokenizer: it learns its codes
    cotlib pretrain judge     --minutes 45      # needs neither: clean rendered scenes only

Each writes a checkpoint and a log under `runs/pretrain/<part>` (a killed run goes on from there), and at the end its
weights and a model card. Held-out scenes use seeds of their own stage; of one object alone there are so few different
scenes that they occur in training too.

Evaluation prompts: no model ever reads one of the 553 texts, nor, single objects apart, one of their contents under
another opening (`unseen`). The 553 hold "a photo of a dog" for all 80 classes; single objects are told of as "a picture
of a dog".
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlavaOnevisionForConditionalGeneration

from ..errors import ForeignError
from ..geneval import NATURAL
from ..judge import (
    Judge,
    judge_tokenizer,
    outcome_question,
    pocket_judge_config,
)
from ..loaders import device
from ..precision import autocast, best_dtype
from ..prompts import CLASSES, COLORS, NUMBER_WORDS, TASKS, geneval_prompts
from ..provenance import machine
from ..seeds import sample_seed
from ..showo import Showo, ShowoConfig
from ..stats import auc
from ..store import atomic_write, read_json, sha256, write_json
from ..words import build_tokenizer
from . import questions, world
from .checks import agreement, damaged, mixed_cases, pictures, verdicts_on, violating_cases
from .detector import PALETTE, PLACES, SIDES, PocketDetector, PocketEvaluator
from .questions import unseen
from .tokenizer import PocketTokenizer, psnr, to_pixels
from .training import CHECKPOINT, Budget, Loop, muon_and_adamw, spent

WEIGHTS = Path(__file__).with_name("weights")
NOTHING = len(CLASSES)  # the detector's class of a cell that no object covers


def scenes(spec: world.Mixture, seed: int, stage: str, start: int, n: int) -> list[world.Scene]:
    """Scenes `start`..`start+n-1` of an endless series that depends on (seed, stage) only."""
    return [world.sample_scene(spec, sample_seed(seed, "scene", start + i, stage)) for i in range(n)]


def load_vision(tokenizer: Path) -> PocketTokenizer:
    return PocketTokenizer.from_pretrained(tokenizer).float().eval()


def tokenizer_in(out: Path) -> Path:
    """The tokenizer among the weights in a folder, else the shipped one."""
    return (out if (out / "tokenizer").is_dir() else WEIGHTS) / "tokenizer"


# --- Tokenizer --------------------------------------------------------------------------------------------------


def crowded_scene(rng: np.random.Generator) -> np.ndarray:
    """A picture full of objects: far more detail than a captioned scene, for the tokenizer only."""
    cells, n, colors = (world.SMALL, 4, (None, *COLORS)) if rng.random() < 0.75 else (world.LARGE, 2, (None,))
    things = [
        world.Thing(CLASSES[rng.integers(80)], colors[rng.integers(len(colors))], x, y, cells)
        for x, y in world.place(n, cells, rng)
    ]
    return world.render(things, int(rng.integers(len(world.BACKGROUNDS))))


def reconstruction_loss(model: PocketTokenizer, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Squared and absolute error, and LFQ's entropy term: each bit sure of itself, all codes used."""
    with autocast():
        painted, z = model(pixels)
    painted = painted.float()
    mse = F.mse_loss(painted, pixels)
    p = torch.sigmoid(4 * z)
    entropy = _bit_entropy(p).mean() - _bit_entropy(p.mean((0, 2, 3))).mean()
    return {"loss": mse + 0.2 * F.l1_loss(painted, pixels) + 0.01 * entropy, "mse": mse.detach()}


def _bit_entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * torch.log(p + 1e-6) + (1 - p) * torch.log(1 - p + 1e-6))


def train_tokenizer(minutes: float, folder: Path, seed: int = 0, batch_size: int = 32) -> PocketTokenizer:
    torch.manual_seed(seed)  # initial weights
    model = PocketTokenizer().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    loop = Loop(model, [optimizer], Budget(minutes, warmup=100), folder)

    def step(i: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(sample_seed(seed, "crowd", i, "tokenizer"))
        images = np.stack([crowded_scene(rng) for _ in range(batch_size)])
        return reconstruction_loss(model, to_pixels(images).contiguous(memory_format=torch.channels_last))

    loop.run(step)
    return model


def check_tokenizer(model: PocketTokenizer, seed: int = 0, n: int = 1024) -> dict[str, float]:
    images = pictures(scenes(world.WEB, seed, "held-out", 0, n))
    codes = model.encode(images)
    return {"psnr_db": psnr(images, model.decode(codes)), "codes_in_use": len(codes.unique()), "scenes": n}


# --- Generator --------------------------------------------------------------------------------------------------


def masked_codes(codes: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Show-o's training mask: per row a ratio cos(pi/2 * t), t uniform, that many positions exactly; bool [B, L]."""
    B, L = codes.shape
    n = (L * torch.cos(torch.rand(B, 1, generator=rng) * torch.pi / 2)).round().clamp(min=1)
    return torch.rand(B, L, generator=rng).argsort(-1).argsort(-1) < n


def token_loss(
    model: Showo, text: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor, rng: torch.Generator, n: int = 32
) -> dict[str, torch.Tensor]:
    """Cross-entropy of the masked tokens, on at most `n` of them per row: the head is a fifth of the cost."""
    order = (masked.float() + 0.5 * torch.rand(masked.shape, generator=rng)).argsort(-1, descending=True)[:, :n]
    target = codes.masked_fill(~masked, -100).gather(1, order)
    codes, masked, order, target = (x.to(model.device) for x in (codes, masked, order, target))
    with autocast(model.device.type):
        hidden = model.hidden(text, codes, masked)
        logits = model.head(hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1])))
    loss = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), ignore_index=-100)
    return {"loss": loss}


class WebPages(torch.utils.data.Dataset):
    """Batch i of an endless series: pictures uint8 [B, H, W, 3] and the text block of each, int64 [B, text_length]."""

    def __init__(self, seed: int, batch_size: int, text_row: Callable[[str], list[int]]):
        self.seed, self.batch_size, self.text_row = seed, batch_size, text_row

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = scenes(world.WEB, self.seed, "generator", i * self.batch_size, self.batch_size)
        dropped = np.random.default_rng(sample_seed(self.seed, "dropped", i, "generator")).random(len(batch)) < 0.1
        # What an evaluation prompt says is dropped as well: the picture may be seen, its prompt may not.
        said = [s.caption if unseen(s.caption, s) and not drop else "" for s, drop in zip(batch, dropped, strict=True)]
        return torch.from_numpy(pictures(batch)), torch.tensor([self.text_row(text) for text in said])


def train_generator(
    minutes: float, folder: Path, seed: int = 0, tokenizer: Path = WEIGHTS / "tokenizer", batch_size: int | None = None
) -> Showo:
    """batch_size: 64 pictures; with a GPU 512, drawn by processes on all cores but one."""
    on_gpu, words = device() == "cuda", build_tokenizer()
    batch_size = batch_size or (512 if on_gpu else 64)
    vision = load_vision(tokenizer).to(device())
    torch.manual_seed(seed)  # initial weights
    model = Showo(ShowoConfig(llm_vocab_size=len(words), codebook_size=vision.codebook_size), words).to(device())
    if not on_gpu:  # 82 tokens: its backward pass is 1.4 times as fast as the fused one
        model.showo.set_attn_implementation("eager")
    matrices = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
    loop = Loop(model, muon_and_adamw(model, 3e-3, matrices), Budget(minutes), folder)
    n_workers = max(1, machine()["cores"] - 1) if on_gpu else 0
    pages = iter(
        torch.utils.data.DataLoader(
            WebPages(seed, batch_size, model.text_row),
            batch_size=None,
            sampler=itertools.count(loop.steps),
            num_workers=n_workers,
            multiprocessing_context="fork" if n_workers else None,  # they share the text tokenizer
        )
    )

    def step(i: int) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(sample_seed(seed, "mask", i, "generator"))
        images, text = next(pages)
        codes = vision.encode(images.numpy()).clone()
        return token_loss(model, text.to(model.device), codes, masked_codes(codes, rng), rng)

    loop.run(step)
    return model


@torch.no_grad()
def check_generator(
    model: Showo, tokenizer: Path = WEIGHTS / "tokenizer", seed: int = 0, n: int = 1024
) -> dict[str, float]:
    """Masked-token loss on held-out scenes with fixed masks."""
    vision = load_vision(tokenizer).to(model.device)
    held_out = scenes(world.WEB, seed, "held-out", 0, n)
    rng = torch.Generator().manual_seed(sample_seed(seed, "mask", 0, "held-out"))
    losses = []
    for start in range(0, n, 64):
        batch = held_out[start : start + 64]
        codes = vision.encode(pictures(batch)).clone()
        text = model.text_ids([s.caption for s in batch])
        losses.append(float(token_loss(model, text, codes, masked_codes(codes, rng), rng)["loss"]))
    return {"held_out_loss": float(np.mean(losses)), "scenes": n}


# --- Detector ---------------------------------------------------------------------------------------------------


TOO_BROKEN = 1 / 3  # of an object's cells: from here on it is no longer one
PLACE_OF = {
    side: torch.tensor([[PLACES.index((side, r, c)) for c in range(side)] for r in range(side)]) for side in SIDES
}


def cell_labels(batch: list[world.Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What covers each cell: class (80: nothing), colour and place; -100 where nothing is asked. int64 [B, 8, 8]."""
    shape = (len(batch), world.GRID, world.GRID)
    cls, color, place = torch.full(shape, NOTHING), torch.full(shape, -100), torch.full(shape, -100)
    for b, scene in enumerate(batch):
        for t in scene.things:
            block = (b, slice(t.row, t.row + t.cells), slice(t.column, t.column + t.cells))
            cls[block] = CLASSES.index(t.cls)
            color[block] = PALETTE.index(t.color or NATURAL)
            place[block] = PLACE_OF[t.cells]
    return cls, color, place


def break_objects(
    batch: list[world.Scene], labels: tuple[torch.Tensor, torch.Tensor, torch.Tensor], rng: np.random.Generator
) -> np.ndarray:
    """Pictures with half-built objects, as generators make them: in every third scene, one object has some cells
    replaced by background or by cells from anywhere. With a third of its cells wrong it is labelled as nothing."""
    images, cell = pictures(batch), world.CELL
    cls, color, place = labels
    for b in np.flatnonzero(rng.random(len(batch)) < 0.35):
        thing = batch[b].things[rng.integers(len(batch[b].things))]
        n = thing.cells**2
        broken = rng.permutation(n)[: rng.integers(1, n + 1)]
        plain = rng.random() < 0.4
        for i in broken:
            y, x = (thing.row + i // thing.cells) * cell, (thing.column + i % thing.cells) * cell
            other, (v, u) = rng.integers(len(batch)), rng.integers(world.GRID, size=2) * cell
            ground = world.BACKGROUNDS[batch[b].background]
            images[b, y : y + cell, x : x + cell] = ground if plain else images[other, v : v + cell, u : u + cell]
        if len(broken) >= TOO_BROKEN * n:
            block = (b, slice(thing.row, thing.row + thing.cells), slice(thing.column, thing.column + thing.cells))
            cls[block], color[block], place[block] = NOTHING, -100, -100
    return images


def damage(images: np.ndarray, vision: PocketTokenizer, rng: np.random.Generator) -> np.ndarray:
    """What generated pictures look like: half of them pass the tokenizer, some codes wrong; then noise and blur."""
    through = np.flatnonzero(rng.random(len(images)) < 0.5)
    out = images.copy()
    if len(through):
        codes = vision.encode(images[through])
        wrong = torch.from_numpy(rng.random(codes.shape) < rng.choice([0.0, 0.0, 0.02], size=(len(codes), 1)))
        others = codes.flatten()[torch.from_numpy(rng.permutation(codes.numel()))].view_as(codes)
        out[through] = vision.decode(torch.where(wrong, others, codes))
    return blemished(out, rng)


def blemished(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise and blur on uint8 [B, H, W, 3]."""
    out = images.astype(np.float32)
    out += rng.choice([0, 4, 10, 16], size=(len(out), 1, 1, 1)) * rng.standard_normal(out.shape, np.float32)
    soft = np.flatnonzero(rng.random(len(out)) < 0.2)
    out[soft] = sum(np.roll(out[soft], shift, (1, 2)) for shift in ((0, 0), (1, 0), (0, 1), (1, 1))) / 4
    return out.clip(0, 255).astype(np.uint8)


def train_detector(
    minutes: float, folder: Path, seed: int = 0, tokenizer: Path = WEIGHTS / "tokenizer", batch_size: int = 32
) -> PocketDetector:
    vision = load_vision(tokenizer)
    torch.manual_seed(seed)  # initial weights
    model = PocketDetector().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=1e-3)
    loop = Loop(model, [optimizer], Budget(minutes, warmup=50), folder)

    def step(i: int) -> dict[str, torch.Tensor]:
        batch = scenes(world.CLEAN, seed, "detector", i * batch_size, batch_size)
        rng = np.random.default_rng(sample_seed(seed, "damage", i, "detector"))
        labels = cell_labels(batch)
        images = damage(break_objects(batch, labels, rng), vision, rng)
        with autocast():
            answers = model(to_pixels(images).contiguous(memory_format=torch.channels_last))
        losses = [F.cross_entropy(a.float(), t) for a, t in zip(answers, labels, strict=True)]
        return {"loss": sum(losses), "class": losses[0].detach(), "color": losses[1].detach()}

    loop.run(step)
    return model


def check_detector(model: PocketDetector, tokenizer: Path = WEIGHTS / "tokenizer", n: int = 5000) -> dict[str, float]:
    """Agreement with ground truth on clean, rebuilt and damaged scenes; and how often a violated clause passes."""
    vision, evaluator = load_vision(tokenizer), PocketEvaluator(model)
    cases, violations = mixed_cases(n), violating_cases(n)
    distortions = {"": None, "_after_roundtrip": lambda x: vision.decode(vision.encode(x)), "_after_damage": damaged}
    measured = {
        f"agreement{name}": agreement(cases, verdicts_on(evaluator, cases, distort))["overall"]
        for name, distort in distortions.items()
    }
    passed = [verdict.correct for verdict in verdicts_on(evaluator, violations)]
    return {**measured, "false_correct": float(np.mean(passed)), "scenes": n}


# --- Judge ------------------------------------------------------------------------------------------------------


def dense_loss(judge: Judge, image_tokens: torch.Tensor, batch: list[world.Scene]) -> torch.Tensor:
    """What every cell's image token should say of the object that covers it, in the directions of words.

    It should point at the words of its class, of its colour and of the number of such objects, and lie where it lies:
    from "left of" to "right of" as far as its middle is across the picture, from "above" to "below" as far down. The
    words are rows of the tied embedding, so that a picture of a dog and the word "dog" share a direction.
    """
    words = judge.model.get_input_embeddings().weight
    cls, color, _ = cell_labels(batch)
    count, across, down = cell_facts(batch)
    seen = F.normalize(image_tokens.float(), dim=-1).flatten(0, 1)

    def directions(names: Sequence[str]) -> torch.Tensor:
        return F.normalize(words[judge.tokenizer.convert_tokens_to_ids(list(names))], dim=-1)

    def pointing(targets: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        return F.cross_entropy(16.0 * seen @ directions(names).T, targets.flatten(), ignore_index=-100)

    def lying(places: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        along = 2.0 * seen @ (directions(names[1:]) - directions(names[:1])).T
        at = places.flatten()
        return F.mse_loss(along[:, 0][~at.isnan()], at[~at.isnan()])

    return (
        pointing(cls, (*CLASSES, judge.tokenizer.unk_token))
        + pointing(color, PALETTE)
        + pointing(count, NUMBER_WORDS[1:5])
        + lying(across, ("left of", "right of"))
        + lying(down, ("above", "below"))
    )


def cell_facts(batch: list[world.Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the object that covers each cell: how many there are of its class, less one, int64 (-100: no object); where
    its middle is, across and down, float in [-1, 1] (NaN: no object). Each [B, 8, 8]."""
    shape = (len(batch), world.GRID, world.GRID)
    count, across, down = torch.full(shape, -100), torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    for b, scene in enumerate(batch):
        for t in scene.things:
            block = (b, slice(t.row, t.row + t.cells), slice(t.column, t.column + t.cells))
            count[block] = sum(other.cls == t.cls for other in scene.things) - 1
            across[block], down[block] = ((at + t.cells / 2) / (world.GRID / 2) - 1 for at in (t.column, t.row))
    return count, across, down


def train_judge(
    minutes: float, folder: Path, seed: int = 0, batch_size: int = 32, n_questions: int = 12, eye: float = 0.1
) -> Judge:
    """The eye first (dense labels only, a share `eye` of the budget), then questions; dense labels stay in the loss."""
    words = judge_tokenizer()
    torch.manual_seed(seed)  # initial weights
    judge = Judge(LlavaOnevisionForConditionalGeneration(pocket_judge_config(words)), words)
    look_up_own_word(judge)
    judge.model.set_attn_implementation("eager")  # as for the generator: 1.4 times as fast backwards
    matrices = [p for n, p in judge.model.named_parameters() if ".layers." in n and p.ndim == 2]
    loop = Loop(judge.model, muon_and_adamw(judge.model, 2e-3, matrices), Budget(minutes), folder)

    def step(i: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(sample_seed(seed, "questions", i, "judge"))
        batch = scenes(world.EXAM, seed, "judge", i * batch_size, batch_size)
        images = to_pixels(blemished(pictures(batch), rng))
        if loop.seconds < eye * 60 * minutes:
            with autocast():
                dense = dense_loss(judge, judge.look(images), batch)
            return {"loss": dense, "dense": dense.detach()}
        rows, answers = zip(*(questions.about(scene, rng, n_questions) for scene in batch), strict=True)
        with autocast():
            logits, tokens = judge.read(judge.batch(images, rows), n_questions)
            dense = dense_loss(judge, tokens, batch)
        target = torch.tensor([judge.tokenizer.convert_tokens_to_ids(list(row)) for row in answers])
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        right = _right_by_kind(judge, logits, target, batch)
        return {"loss": loss + 0.3 * dense, "dense": dense.detach(), "answer": loss.detach(), **right}

    loop.run(step)
    return judge


def _right_by_kind(
    judge: Judge, logits: torch.Tensor, target: torch.Tensor, batch: list[world.Scene]
) -> dict[str, torch.Tensor]:
    """Share of right answers: to all questions, to those for a fact, and yes or no about two kinds of scenes."""
    right, closed = (logits.argmax(-1) == target).float(), torch.isin(target, torch.tensor(judge.yes + judge.no))
    shares = {"accuracy": right.mean(), "facts": right[~closed].mean()}
    for kind in ("counting", "position"):
        mine = closed & torch.tensor([scene.kind == kind for scene in batch])[:, None]
        shares[kind] = right[mine].mean() if mine.any() else torch.tensor(1.0)
    return shares


@torch.no_grad()
def look_up_own_word(judge: Judge) -> None:
    """Start the first two layers with queries = keys, so that a word attends to image tokens that point at it.

    Found from scratch, this match is a plateau of tens of thousands of pictures; as a start it costs nothing.
    """
    for layer in judge.model.model.language_model.layers[:2]:
        layer.self_attn.q_proj.weight.mul_(3.0)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)


def check_judge(judge: Judge, seed: int = 0) -> dict[str, float]:
    """AUC on held-out clean scenes of the 553 prompts: asked their own prompt, and one with one clause changed.

    By task as well: a judge that tells objects apart but not their number has 1.0 and 0.5.
    """
    prompts = geneval_prompts()
    true = [world.scene_of(p, sample_seed(seed, p.id, 0, "true")) for p in prompts]
    images = pictures(true)
    rng = np.random.default_rng(sample_seed(seed, "wrong", 0, "held-out"))
    wrong = [world.misdescribe(scene, rng) for scene in true]
    yes = judge.p_yes(images, [outcome_question(p.text) for p in prompts])
    no = judge.p_yes(images, [outcome_question(text) for text in wrong])

    def separated(which: np.ndarray) -> float:
        return auc([*yes[which], *no[which]], [True] * int(which.sum()) + [False] * int(which.sum()))

    tasks = np.array([p.task for p in prompts])
    by_task = {f"auc_{task}": separated(tasks == task) for task in TASKS}
    return {"auc_clean": separated(tasks != ""), **by_task, "questions": 2 * len(prompts)}


PARTS: dict[str, tuple[Callable, Callable]] = {
    "tokenizer": (train_tokenizer, check_tokenizer),
    "detector": (train_detector, check_detector),
    "generator": (train_generator, check_generator),
    "judge": (train_judge, check_judge),
}


READ_CODES = ("detector", "generator")  # learn from a tokenizer's pictures or codes
RUNS, REQUEST = Path("runs/pretrain"), "request.json"


def run(part: str, minutes: float, out: Path = WEIGHTS, seed: int = 0) -> dict[str, float]:
    """Train one part within a budget, save it with its card under `out/<part>`, return what was measured held out.

    Raises ValueError for an unknown part and for a budget that is not positive; ForeignError where an unfinished
    training of another request lies.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    if not minutes > 0:
        raise ValueError(f"the budget must be a positive number of minutes, got {minutes}")
    (train, check), runs = PARTS[part], RUNS / part
    reads = {"tokenizer": tokenizer_in(Path(out))} if part in READ_CODES else {}
    digests = {name: sha256(folder / "model.safetensors")[:12] for name, folder in reads.items()}
    _claim(runs, {"part": part, "minutes": minutes, "seed": seed, **digests})
    model = train(minutes, runs, seed, **reads)
    measured = check(model, **reads)
    save(model, Path(out) / part)
    write_card(part, Path(out) / part, minutes, seed, measured, runs)
    for left in (runs / CHECKPOINT, runs / REQUEST):  # the next training begins anew
        left.unlink()
    print(measured, flush=True)
    return measured


def _claim(runs: Path, request: dict[str, object]) -> None:
    """Remember what is trained in a folder. ForeignError if its checkpoint is of something else."""
    if (runs / CHECKPOINT).is_file():
        theirs = read_json(runs / REQUEST) if (runs / REQUEST).is_file() else "an earlier version"
        if theirs != request:
            raise ForeignError(
                f"{runs} holds a training that did not end, of {theirs}; this one is of {request}. Finish that one "
                f"with its own command, or start anew with: rm -r {runs}"
            )
    write_json(runs / REQUEST, request)


def save(model: torch.nn.Module | Judge, folder: Path) -> None:
    """Weights as float16: half the size, and every loader widens them again."""
    if isinstance(model, Showo):
        model.save_pretrained(folder, dtype=torch.float16)
        return
    (model.model if isinstance(model, Judge) else model).half()
    model.save_pretrained(folder)


def write_card(part: str, folder: Path, minutes: float, seed: int, measured: dict[str, float], runs: Path) -> None:
    """README.md beside the weights: data, budget, machine, metrics, command, loss curve."""
    steps, seconds = spent(runs)
    log = [json.loads(line) for line in (runs / "log.jsonl").read_text().splitlines()]
    shown = log[:: max(1, len(log) // 12)]
    shown += [record for record in log[-1:] if record not in shown]
    columns = sorted({name for record in log for name in record} - {"step", "seconds"})
    curve = [f"| {r['step']} | {r['seconds']} | {' | '.join(str(r.get(c, '')) for c in columns)} |" for r in shown]
    lines = [
        f"# Pocket {part}",
        "",
        "Made by `cotlib` from its own drawn world; no photograph, no downloaded data. Licence: Apache-2.0.",
        "",
        f"- **Command**: `cotlib pretrain {part} --minutes {minutes:g} --seed {seed}`",
        f"- **Data**: {DATA[part]}",
        f"- **Budget**: {seconds / 60:.1f} min, {steps} steps, resumable",
        f"- **Machine**: {_machine(part)}",
        f"- **Measured**: {', '.join(f'{k} {v:.4g}' for k, v in measured.items())}",
        "- **Limits**: knows the 80 classes, 10 colours and sentence forms of the pocket world, nothing else.",
        "",
        f"| step | seconds | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 2)}",
        *curve,
    ]
    atomic_write(folder / "README.md", "\n".join(lines) + "\n")


def _machine(part: str) -> str:
    here = machine()
    if part == "generator" and here["gpu"]:
        return f"{here['gpu']}, {best_dtype('cuda')} autocast, {here['cores']} cores"
    return f"{here['cpu']}, {torch.get_num_threads()} threads, {best_dtype()}, no GPU"


DATA = {
    "tokenizer": "crowded pictures of the pocket world (`pretrain.crowded_scene`); checked on captioned scenes",
    "detector": "scenes of `world.CLEAN`, a third with a half-built object, half through the tokenizer, noise and blur",
    "generator": "scenes of `world.WEB` with captions that are often wrong, 10 % dropped; none of the 553 prompts",
    "judge": "clean rendered scenes of `world.EXAM`, never a generated picture; none of the 553 prompts",
}
