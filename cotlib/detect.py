"""GenEval's instruments for photographs: Mask2Former finds the objects, CLIP names their colours. No mmdetection.

What surrounds the two networks decides the scores as much as they do, so it is written out here, after GenEval
(evaluate_images.py, MIT licence, github.com/djghosh13/geneval at af4902f) and the mmdetection 2.28 pipeline it calls:
resizing and padding, masks brought back to the picture's size, scores that are class probability times mask
confidence, tight boxes, crops on a grey ground. The library's own post-processing is not used: it squeezes pictures to
384 px, and where masks overlap only the last is left.

Differences from upstream
1. Resizing is done in floats and rounded, upstream in fixed point: a pixel differs by one grey level at most.
2. CLIP runs in float32, upstream under autocast; its centre crop of an odd margin may start one pixel earlier.
3. The default weights are those of Mask2Former's authors (COCO AP 46.3), not GenEval's retrained by mmdetection (46.1).
   Nobody has published how scores differ; GenEval's own load as `detector` once converted to safetensors.
4. Objects whose class is at most 0.1 probable are not listed: no score exceeds that, and the rules want more than 0.3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPModel, Mask2FormerForUniversalSegmentation, PreTrainedTokenizerBase

from .batches import Batches
from .errors import DetectorError
from .geneval import NATURAL, THRESHOLD, Detection, Verdict, evaluate, runs
from .prompts import CLASSES, COLORS, Prompt

LONG, SHORT = 1333, 800  # px, the most that a picture's sides may measure when it reaches the detector
STRIDE, PADDING = 32, 128  # px, grey level
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, red green blue
TOP = 100  # (query, class) pairs of a picture
CANDIDATE = 0.1  # class probability below which an object is not worth listing
GROUND = "#999"  # behind an object whose colour is asked for
COLOR_TEMPLATES = ("a photo of a {color} {cls}", "a photo of a {color}-colored {cls}", "a photo of a {color} object")

N_BLANK = 32  # pictures in which nothing at all is found, from the first on, that prove the detector broken
MOST_APART = 0.05  # of the answers' own spread, between this device and the processor

Objects = dict[Detection, np.ndarray]  # object -> mask, bool [H, W], True on the object


# --- Mask2Former --------------------------------------------------------------------------------------------------


def prepare(images: torch.Tensor, long: int = LONG, short: int = SHORT) -> tuple[torch.Tensor, tuple[int, int]]:
    """uint8 [B, H, W, 3] -> network input [B, 3, h, w], padded below and right, and the size (h, w) before padding."""
    height, width = images.shape[1:3]
    scale = min(long / max(height, width), short / min(height, width))
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    pixels = F.interpolate(images.permute(0, 3, 1, 2).float(), size=size, mode="bilinear", align_corners=False).round()
    pixels = F.pad(pixels, (0, -size[1] % STRIDE, 0, -size[0] % STRIDE), value=PADDING)
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std, size


def objects_of(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    padded: tuple[int, int],
    resized: tuple[int, int],
    original: tuple[int, int],
    least: float = CANDIDATE,
) -> Objects:
    """One picture's answers -> its objects. class_logits: [Q, 81], the last "no object"; mask_logits: [Q, h, w].

    padded, resized, original: (height, width) of the network's input with and without padding, and of the picture.
    One query may stand for several classes.
    """
    n_classes = class_logits.shape[-1] - 1
    probabilities = class_logits.softmax(-1)[:, :-1].flatten()
    probabilities, pairs = probabilities.topk(min(TOP, len(probabilities)))
    pairs, probabilities = pairs[probabilities > least], probabilities[probabilities > least]
    if not len(pairs):
        return {}
    logits = mask_logits[pairs // n_classes][None]
    logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)[..., : resized[0], : resized[1]]
    logits = F.interpolate(logits, size=original, mode="bilinear", align_corners=False)[0]
    masks = logits > 0
    confidence = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    scores, classes = (probabilities * confidence).tolist(), (pairs % n_classes).tolist()
    objects: Objects = {}
    for cls, score, mask in zip(classes, scores, masks.cpu().numpy(), strict=True):
        if mask.any():
            objects[Detection(CLASSES[cls], score, tight_box(mask))] = mask
    return objects


def tight_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) in px around the True pixels of a mask [H, W]; x1 and y1 lie one past the last."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


class ObjectDetector:
    """Mask2Former as GenEval calls it."""

    def __init__(self, model: Mask2FormerForUniversalSegmentation, long: int = LONG, short: int = SHORT):
        self.model, self.long, self.short = model.eval(), long, short

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> list[Objects]:
        """The objects of each picture, of the likeliest class first. images: uint8 [B, H, W, 3], red green blue."""
        raw = torch.from_numpy(np.ascontiguousarray(images)).to(self.model.device)
        pixels, resized = prepare(raw, self.long, self.short)
        answer = self.model(pixel_values=pixels)
        padded, original = tuple(pixels.shape[-2:]), tuple(raw.shape[1:3])
        return [
            objects_of(classes.float(), masks.float(), padded, resized, original)
            for classes, masks in zip(answer.class_queries_logits, answer.masks_queries_logits, strict=True)
        ]


# --- CLIP ---------------------------------------------------------------------------------------------------------


def cut_out(image: np.ndarray, mask: np.ndarray, box: tuple[float, float, float, float]) -> Image.Image:
    """The object on grey, cropped to its box. image: uint8 [H, W, 3]; mask: bool [H, W]; box in px."""
    picture = Image.fromarray(image)
    ground = Image.new("RGB", picture.size, GROUND)
    return Image.composite(picture, ground, Image.fromarray(mask)).crop(tuple(map(round, box)))


class ColorClassifier:
    """Which of the ten colours CLIP sees in a picture of an object."""

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, processor: CLIPImageProcessorPil):
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor
        self._colors_of: dict[str, torch.Tensor] = {}  # by class

    @property
    def side(self) -> int:
        """px of the square pictures that the network takes."""
        return self.model.config.vision_config.image_size

    @torch.inference_mode()
    def __call__(self, crops: Sequence[tuple[Image.Image, str]]) -> list[str]:
        """The colour of each (picture, class of the object)."""
        pixels = self.processor(images=[picture for picture, _ in crops], return_tensors="pt")["pixel_values"]
        seen = _image_features(self.model, pixels.to(self.model.device))
        told = torch.stack([self.color_features(cls) for _, cls in crops])  # [B, 10, D]
        best = torch.einsum("bd,bcd->bc", F.normalize(seen, dim=-1), told).argmax(-1)
        return [COLORS[i] for i in best.tolist()]

    @torch.inference_mode()
    def color_features(self, cls: str) -> torch.Tensor:
        """[10, D], unit length: for each colour the mean over the templates, each at unit length first."""
        if cls not in self._colors_of:
            texts = [template.format(color=color, cls=cls) for color in COLORS for template in COLOR_TEMPLATES]
            tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.model.device)
            features = F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)
            self._colors_of[cls] = F.normalize(features.unflatten(0, (len(COLORS), -1)).mean(1), dim=-1)
        return self._colors_of[cls]


# --- Both together ------------------------------------------------------------------------------------------------


class PhotoEvaluator:
    """GenEval's rules over Mask2Former and CLIP."""

    def __init__(
        self,
        detector: Callable[[np.ndarray], list[Objects]],
        classifier: Callable[[Sequence[tuple[Image.Image, str]]], list[str]],
        batch_size: int = 8,
    ):
        self.detector, self.classifier = detector, classifier
        self._in_batches = Batches(batch_size, "evaluator")
        self._n_blank: int | None = 0  # pictures so far without any object; None once one was found

    @property
    def batch_size(self) -> int:
        """Pictures looked at together; less than asked for once memory ran out."""
        return self._in_batches.size

    def detect(self, images: np.ndarray) -> list[list[Detection]]:
        """Objects of each picture, most confident first. images: uint8 [B, H, W, 3].

        Raises DetectorError where the first 32 pictures show nothing at all, OutOfMemoryError where one is too many.
        """
        looked = self._in_batches(self._look, _checked(images))
        return [sorted(objects, key=lambda detection: -detection.score) for objects in looked]

    def evaluate(self, images: np.ndarray, prompts: Sequence[Prompt]) -> list[Verdict]:
        """One verdict per picture. Raises as `detect` does, and ValueError unless there is a prompt for each."""
        if len(images) != len(prompts):
            raise ValueError(
                f"evaluate: expected one prompt per picture, got {len(prompts)} for {len(images)} pictures"
            )
        first, run = runs(_checked(images))
        asked: list[tuple[np.ndarray, list[Prompt]]] = [(images[i], []) for i in first]
        for i, prompt in zip(run, prompts, strict=True):
            asked[i][1].append(prompt)
        return [verdict for verdicts in self._in_batches(self._judge, asked) for verdict in verdicts]

    def _look(self, images: Sequence[np.ndarray]) -> list[Objects]:
        looked = self.detector(np.stack(images))
        if self._n_blank is not None:
            self._guard(looked)
        return looked

    def _guard(self, looked: list[Objects]) -> None:
        if any(detection.score > THRESHOLD for objects in looked for detection in objects):
            self._n_blank = None
            return
        self._n_blank += len(looked)
        if self._n_blank >= N_BLANK:
            best = max((detection.score for objects in looked for detection in objects), default=0.0)
            raise DetectorError(
                f"the detector found nothing in the first {self._n_blank} pictures: expected some object above a "
                f"score of {THRESHOLD}, got {best:.2f} at most. Either they show no object at all, or these are not "
                "the weights of this network or its kernels are broken on this device: try again with "
                "CUDA_VISIBLE_DEVICES= in front of the command; cotlib geneval FOLDER --canary KNOWN first asks about "
                "pictures known to be right"
            )

    def _judge(self, pairs: Sequence[tuple[np.ndarray, list[Prompt]]]) -> list[list[Verdict]]:
        """The verdicts on each picture, one a prompt that it is asked about.

        The rules twice: first to learn whose colour they ask for, then with the colours, named all at once.
        """
        looked = self._look([image for image, _ in pairs])
        asked: list[tuple[int, Detection]] = []
        for i, (_, prompts) in enumerate(pairs):
            for prompt in prompts:
                evaluate(prompt, list(looked[i]), lambda detection, i=i: asked.append((i, detection)) or NATURAL)
        asked = list(dict.fromkeys(asked))
        crops = [(cut_out(pairs[i][0], looked[i][d], d.box), d.cls) for i, d in asked]
        colors = dict(zip(asked, self.classifier(crops) if crops else [], strict=True))
        return [
            [evaluate(prompt, list(looked[i]), lambda detection, i=i: colors[i, detection]) for prompt in prompts]
            for i, (_, prompts) in enumerate(pairs)
        ]

    def self_check(self) -> None:
        """The same noise through both networks, on their device and on the processor, must give the same answers.

        Raises DetectorError otherwise: some builds of GPU kernels compute rubbish without a word.
        """
        for model, what, answer, side in (
            (self.detector.model, "detector", _both_logits, 256),
            (self.classifier.model, "colour classifier", _image_features, self.classifier.side),
        ):
            pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
            on_processor = model if model.device.type == "cpu" else copy.deepcopy(model).cpu()
            check_same(what, answer, pixels, model, on_processor)


def _both_logits(model: Mask2FormerForUniversalSegmentation, pixels: torch.Tensor) -> torch.Tensor:
    answer = model(pixel_values=pixels)
    return torch.cat([answer.class_queries_logits.flatten(), answer.masks_queries_logits.flatten()])


def _image_features(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    return model.get_image_features(pixel_values=pixels).pooler_output


@torch.inference_mode()
def check_same(
    what: str,
    answer: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    model: nn.Module,
    reference: nn.Module,
) -> None:
    """Both models must answer alike, each on its own device. Raises DetectorError otherwise, and for no numbers."""
    device = next(model.parameters()).device
    here = answer(model, pixels.to(device)).float().cpu()
    there = here if reference is model else answer(reference, pixels).float()  # itself: only rubbish can be told
    apart = float((here - there).norm() / (there - there.mean()).norm())
    if not apart <= MOST_APART:  # NaN too
        raise DetectorError(
            f"{what}: on {device} and on the processor the same picture gives other answers, {apart:.3g} of their "
            f"spread apart; expected at most {MOST_APART}. Nothing was scored. Use a build of torch made for this "
            "device, or score on the processor with CUDA_VISIBLE_DEVICES= in front of the command"
        )


def _checked(images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"detector: expected uint8 pictures [B, H, W, 3], got {images.dtype} {list(images.shape)}")
    return images
