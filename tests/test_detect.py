"""The evaluator of photographs: GenEval's arithmetic by hand, its weights by name, and what it refuses."""

from __future__ import annotations

import copy
import math
import re
import sys

import numpy as np
import pytest
import torch
from fake_weights import detector_config, loud, write_clip
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPModel,
    Mask2FormerForUniversalSegmentation,
)

from cotlib import hub, loaders
from cotlib.batches import Batches
from cotlib.canary import Labelled, check
from cotlib.config import SCALES
from cotlib.detect import (
    MEAN,
    STD,
    ColorClassifier,
    ObjectDetector,
    PhotoEvaluator,
    check_same,
    cut_out,
    objects_of,
    prepare,
    tight_box,
)
from cotlib.errors import CorruptError, DetectorError, IncompleteError, OutOfMemoryError
from cotlib.geneval import Detection
from cotlib.mask2former_keys import UNUSED, by_patch, convert, official_config
from cotlib.pocket.canary import labelled_scenes
from cotlib.pocket.detector import PocketDetector, PocketEvaluator
from cotlib.prompts import CLASSES, COLORS, TASKS, Clause, compose

# --- Before the network -------------------------------------------------------------------------------------------


def prepared(image, **sizes) -> tuple[torch.Tensor, tuple[int, int]]:
    """Grey levels again, [3, h, w], and the size before padding."""
    pixels, size = prepare(torch.as_tensor(image, dtype=torch.uint8)[None], **sizes)
    return pixels[0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1), size


@pytest.mark.parametrize(
    ("height", "width", "resized", "padded"),
    [
        (256, 256, (800, 800), (800, 800)),
        (512, 512, (800, 800), (800, 800)),
        (256, 384, (800, 1200), (800, 1216)),
        (300, 900, (444, 1333), (448, 1344)),  # the long side binds: 444.3 and 1333
        (900, 300, (1333, 444), (1344, 448)),
    ],
)
def test_pictures_are_enlarged_to_800_or_1333_px_and_padded_to_multiples_of_32(height, width, resized, padded):
    pixels, size = prepare(torch.zeros(1, height, width, 3, dtype=torch.uint8))
    assert size == resized and tuple(pixels.shape[-2:]) == padded


def test_padding_is_grey_below_and_right_and_red_comes_first():
    image = np.zeros((60, 100, 3), np.uint8)
    image[..., 0] = 250
    pixels, size = prepared(image, long=64, short=48)
    assert size == (38, 64) and pixels.shape == (3, 64, 64)
    assert torch.allclose(pixels[0, :38], torch.tensor(250.0), atol=1e-3)
    assert torch.allclose(pixels[1:, :38], torch.tensor(0.0), atol=1e-3)
    assert torch.allclose(pixels[:, 38:], torch.tensor(128.0), atol=1e-3)


def test_resizing_is_bilinear_without_smoothing_and_rounded():
    row = np.array([0, 101, 0, 0], np.uint8)
    image = np.broadcast_to(row[None, :, None], (4, 4, 3)).copy()
    smaller, _ = prepared(image, long=2, short=2)
    assert smaller[0, 0, :2].tolist() == pytest.approx([50, 0], abs=1e-3)  # 50.5, to even
    larger, _ = prepared(image[:2, :2], long=4, short=4)
    assert larger[0, 0, :4].tolist() == pytest.approx([0, 25, 76, 101], abs=1e-3)


# --- After the network --------------------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_odds(*probabilities: float) -> torch.Tensor:
    """Class logits of one query; the last stands for no object."""
    return torch.tensor(probabilities).log()


def test_the_score_is_class_probability_times_mean_confidence_inside_the_mask():
    mask = torch.full((1, 4, 6), -9.0)
    mask[0, 1:3, 2:5] = 2.0
    mask[0, 1, 2] = 1.0
    ((found, inside),) = objects_of(log_odds(0.1, 0.7, 0.2)[None], mask, (4, 6), (4, 6), (4, 6)).items()
    assert found.cls == CLASSES[1] and found.box == (2.0, 1.0, 5.0, 3.0)
    assert found.score == pytest.approx(0.7 * (5 * sigmoid(2.0) + sigmoid(1.0)) / 6, abs=1e-5)
    assert np.array_equal(inside, mask[0].numpy() > 0)


def test_masks_are_enlarged_padding_is_cut_off_then_they_return_to_the_picture():
    # columns -1, 1 become -1, -0.5, 0.5, 1 in the padded input, whose last column is padding
    mask = torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]]])
    ((found, _),) = objects_of(log_odds(0.9, 0.1)[None], mask, (4, 4), (4, 3), (4, 3)).items()
    assert found.box == (2.0, 0.0, 3.0, 4.0)
    assert found.score == pytest.approx(0.9 * sigmoid(0.5), abs=1e-5)
    # the same, back in a picture of twice the width: -1, -0.875, -0.625, -0.25, 0.25, 0.5
    ((found, _),) = objects_of(log_odds(0.9, 0.1)[None], mask, (4, 4), (4, 3), (4, 6)).items()
    assert found.box == (4.0, 0.0, 6.0, 4.0)
    assert found.score == pytest.approx(0.9 * (sigmoid(0.25) + sigmoid(0.5)) / 2, abs=1e-5)


def test_one_query_may_be_several_classes_and_no_object_is_none():
    logits = torch.stack([log_odds(0.45, 0.4, 0.15), log_odds(0.02, 0.03, 0.95)])
    found = objects_of(logits, torch.ones(2, 4, 4), (4, 4), (4, 4), (4, 4))
    assert [d.cls for d in found] == [CLASSES[0], CLASSES[1]]


def test_an_empty_mask_is_no_object():
    assert not objects_of(log_odds(0.9, 0.1)[None], torch.full((1, 4, 4), -1.0), (4, 4), (4, 4), (4, 4))


def test_only_the_hundred_likeliest_pairs_count():
    logits = torch.randn(3, 81, generator=torch.Generator().manual_seed(0))
    found = objects_of(logits, torch.ones(3, 4, 4), (4, 4), (4, 4), (4, 4), least=0.0)
    likeliest = logits.softmax(-1)[:, :-1].flatten().sort(descending=True).values[:100]
    assert [d.score for d in found] == pytest.approx((likeliest * sigmoid(1.0)).tolist(), rel=1e-4)


def test_what_is_not_listed_could_never_count():
    logits = torch.randn(6, 81, generator=torch.Generator().manual_seed(1)) * 3
    masks = torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(2)) * 9
    every = objects_of(logits, masks, (8, 8), (8, 8), (8, 8), least=0.0)
    listed = objects_of(logits, masks, (8, 8), (8, 8), (8, 8))
    counting = [d for d in every if d.score > 0.3]
    assert counting and counting == [d for d in listed if d.score > 0.3] and len(listed) < len(every)


def test_a_box_ends_one_past_the_last_pixel():
    mask = np.zeros((5, 7), bool)
    mask[3, 2] = mask[1, 4] = True
    assert tight_box(mask) == (2.0, 1.0, 5.0, 4.0)


# --- Colours ------------------------------------------------------------------------------------------------------


class HandMadeClip(nn.Module):
    """Text and picture features as told: text number i of the last tokenizer call has row i."""

    device = torch.device("cpu")

    def __init__(self, texts: torch.Tensor, pictures: torch.Tensor):
        super().__init__()
        self.texts, self.pictures = texts, pictures

    def get_text_features(self, texts):
        return type("Output", (), {"pooler_output": self.texts})

    def get_image_features(self, pixel_values):
        return type("Output", (), {"pooler_output": self.pictures})


class Words(dict):
    """A tokenizer's answer, and what it was asked."""

    asked: list[str] = []

    def __call__(self, texts, **options):
        Words.asked = texts
        return Words(texts=texts)

    def to(self, device):
        return self


def pixels_of(images, return_tensors):
    return {"pixel_values": torch.zeros(len(images), 3, 2, 2)}


def test_the_three_templates_of_each_colour_in_geneval_words():
    ColorClassifier(HandMadeClip(torch.eye(30), torch.eye(30)), Words(), pixels_of).color_features("orange")
    assert len(Words.asked) == 30
    assert Words.asked[3:6] == [
        "a photo of a orange orange",
        "a photo of a orange-colored orange",
        "a photo of a orange object",
    ]


def test_every_template_weighs_alike_however_long_its_features():
    axes = torch.eye(10)
    texts = torch.stack([row for c in range(10) for row in (100 * axes[(c + 1) % 10], axes[c], axes[c])])
    classifier = ColorClassifier(HandMadeClip(texts, 7 * axes[[4, 0]]), Words(), pixels_of)
    assert classifier([(None, "dog"), (None, "cat")]) == [COLORS[4], COLORS[0]]
    features = classifier.color_features("dog")
    assert torch.allclose(features.norm(dim=-1), torch.ones(10))
    assert torch.allclose(features[0], (2 * axes[0] + axes[1]) / math.sqrt(5))


def test_a_colour_whose_templates_disagree_is_not_at_a_disadvantage():
    # cosine with the renormalised mean: red's templates spread over three axes, orange's point one way
    axes = torch.eye(12)
    texts = axes[[0, 1, 2] + [3] * 27]
    seen = axes[0] + axes[1] + axes[2] + 1.2 * axes[3]
    assert ColorClassifier(HandMadeClip(texts, seen[None]), Words(), pixels_of)([(None, "dog")]) == ["red"]


def test_an_object_is_cut_out_on_grey():
    image = np.full((6, 8, 3), (200, 10, 30), np.uint8)
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    mask[1, 2] = False
    crop = np.array(cut_out(image, mask, tight_box(mask)))
    assert crop.shape == (3, 5, 3)
    assert crop[0, 0].tolist() == [0x99] * 3 and crop[2, 4].tolist() == [200, 10, 30]


# --- Both together, with networks that are told what to say --------------------------------------------------------

BOX = (0.0, 0.0, 4.0, 4.0)
DOG = compose("dog", (Clause("dog"),))
CAT = compose("cat", (Clause("cat"),))
RED_DOG = compose("red", (Clause("dog", color="red"),))
BLANK = np.zeros((1, 4, 4, 3), np.uint8)


def greys(n: int) -> np.ndarray:
    """n pictures, no two alike."""
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 4, 4, 3))


class Told:
    """A detector that finds the same objects in every picture, with room for `room` pictures at a time."""

    def __init__(self, *objects: tuple[str, float], room: int = 10**6, error: type[Exception] = MemoryError):
        self.objects, self.room, self.error, self.batches = objects, room, error, []

    def __call__(self, images):
        self.batches.append(len(images))
        if len(images) > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 2 GiB")
        mask = np.ones(images.shape[1:3], bool)
        return [{Detection(cls, score, BOX): mask for cls, score in self.objects} for _ in images]


class Painted:
    """A colour classifier that always says the same, and remembers what it was asked."""

    def __init__(self, color: str):
        self.color, self.asked = color, []

    def __call__(self, crops):
        self.asked.append([cls for _, cls in crops])
        return [self.color for _ in crops]


def test_colours_are_asked_for_all_at_once_and_only_where_they_matter():
    colors = Painted("red")
    evaluator = PhotoEvaluator(Told(("dog", 0.9), ("dog", 0.8), ("cat", 0.7)), colors)
    said = evaluator.evaluate(greys(3), [RED_DOG, DOG, RED_DOG])
    assert [v.correct for v in said] == [True] * 3
    assert colors.asked == [["dog", "dog"]]  # the best dog of the first and of the third picture
    evaluator.evaluate(BLANK, [DOG])
    assert len(colors.asked) == 1


def test_equal_detections_of_several_pictures_keep_their_own_colours():
    def seen(crops):
        return ["red" if np.array(crop)[0, 0, 0] > 128 else "blue" for crop, _ in crops]

    images = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (200, 10, 200, 10)])
    said = PhotoEvaluator(Told(("dog", 0.9)), seen).evaluate(images, [RED_DOG] * 4)
    assert [v.correct for v in said] == [True, False, True, False]


def test_a_picture_asked_about_several_times_in_a_row_is_looked_at_once():
    detector, colors = Told(("dog", 0.9)), Painted("blue")
    said = PhotoEvaluator(detector, colors).evaluate(greys(2)[[0, 0, 1, 0, 0]], [DOG, RED_DOG, CAT, RED_DOG, DOG])
    assert [v.correct for v in said] == [True, False, False, False, True]
    assert detector.batches == [3] and colors.asked == [["dog", "dog"]]


def test_the_wrong_colour_is_said():
    verdict = PhotoEvaluator(Told(("dog", 0.9)), Painted("blue")).evaluate(BLANK, [RED_DOG])[0]
    assert verdict.reasons == ("expected a red dog, found blue",)


def test_detections_come_most_confident_first():
    (found,) = PhotoEvaluator(Told(("dog", 0.4), ("cat", 0.8)), Painted("red")).detect(BLANK)
    assert [d.cls for d in found] == ["cat", "dog"]


def test_the_evaluator_wants_a_prompt_for_each_picture_and_true_pictures():
    evaluator = PhotoEvaluator(Told(("dog", 0.9)), Painted("red"))
    with pytest.raises(ValueError, match="one prompt per picture, got 2 for 1"):
        evaluator.evaluate(BLANK, [DOG, DOG])
    with pytest.raises(ValueError, match=r"expected uint8 pictures \[B, H, W, 3\], got float32"):
        evaluator.detect(BLANK.astype(np.float32))


# --- Memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, RuntimeError])
def test_where_memory_runs_out_batches_are_halved_and_answers_stay(error):
    images, prompts = greys(11), [RED_DOG, DOG] * 5 + [DOG]
    roomy = PhotoEvaluator(Told(("dog", 0.9)), Painted("red"), batch_size=16)
    tight = PhotoEvaluator(Told(("dog", 0.9), room=3, error=error), Painted("red"), batch_size=16)
    assert tight.evaluate(images, prompts) == roomy.evaluate(images, prompts)
    assert tight.detector.batches == [11, 8, 4, 2, 2, 2, 2, 2, 1] and tight.batch_size == 2


def test_answers_keep_their_order_where_memory_runs_out_half_way():
    def job(items):
        if 5 in items and len(items) > 1:
            raise MemoryError
        return [10 * item for item in items]

    assert Batches(4, "x")(job, list(range(9))) == [10 * item for item in range(9)]


def test_where_not_even_one_picture_fits_the_message_says_so():
    with pytest.raises(OutOfMemoryError, match="not even one picture at a time.*CUDA_VISIBLE_DEVICES="):
        PhotoEvaluator(Told(room=0), Painted("red"), batch_size=4).detect(np.repeat(BLANK, 4, 0))


def test_other_errors_of_a_batch_are_not_swallowed():
    with pytest.raises(RuntimeError, match="shapes"):
        Batches(4, "x")(lambda items: exec("raise RuntimeError('shapes do not fit')"), [1, 2])


# --- Canary -------------------------------------------------------------------------------------------------------


class Perfect:
    """An evaluator that was told the answers; `but` are the places where it lies."""

    def __init__(self, pictures, but=()):
        self.answers = {(p.image.tobytes(), p.prompt): p.correct != (i in but) for i, p in enumerate(pictures)}

    def evaluate(self, images, prompts):
        said = [self.answers[image.tobytes(), prompt] for image, prompt in zip(images, prompts, strict=True)]
        return [type("Verdict", (), {"correct": right, "reasons": ()}) for right in said]


def test_the_pocket_canary_holds_every_task_right_and_wrong():
    scenes = labelled_scenes()
    assert len(scenes) == 24 and sum(p.correct for p in scenes) == 12
    assert {p.prompt.task for p in scenes if p.correct} == set(TASKS)


def test_the_pocket_canary_says_the_truth():
    from cotlib.pocket import canary, world
    from cotlib.pocket.checks import truth_of

    for i, (drawn, other) in enumerate(canary.PAIRS):
        scene = world.scene_of(compose(f"canary-{i}", drawn), canary.SEED)
        assert truth_of(scene, compose("x", drawn)) and not truth_of(scene, compose("x", other))
        assert np.array_equal(scene.image, labelled_scenes()[2 * i].image)


def test_a_canary_passes_who_is_right_and_names_the_first_error_of_who_is_not():
    scenes = labelled_scenes()
    check(Perfect(scenes), scenes, "the detector", "mend it")
    with pytest.raises(DetectorError) as refusal:
        check(Perfect(scenes, but=(5, 8)), scenes, "the detector", "mend it")
    for part in ("2 of 24", "pocket scene 2", "an elephant and a clock", "expected wrong, got right", "mend it"):
        assert part in str(refusal.value)


def test_an_untrained_detector_is_refused(monkeypatch):
    torch.manual_seed(0)
    broken = PocketEvaluator(PocketDetector(width=16, depth=1))
    monkeypatch.setattr(loaders, "load_evaluator", lambda *_: broken)
    with pytest.raises(
        DetectorError, match="wrong about 12 of 24.*expected right, got wrong.*cotlib pretrain detector"
    ):
        loaders.trusted_evaluator.__wrapped__(SCALES["pocket"])


class Swapped:
    """The shipped detector, shown blue for red."""

    def evaluate(self, images, prompts):
        return loaders.load_evaluator(SCALES["pocket"]).evaluate(images[..., ::-1], prompts)


def test_a_detector_that_is_shown_blue_for_red_is_refused():
    with pytest.raises(DetectorError):
        check(Swapped(), labelled_scenes(), "the detector", "mend it")


def test_the_shipped_detector_passes_its_canary():
    loaders.trusted_evaluator(SCALES["pocket"])


def test_a_detector_that_finds_nothing_in_32_pictures_is_refused():
    evaluator = PhotoEvaluator(Told(("dog", 0.3)), Painted("red"), batch_size=8)
    evaluator.detect(greys(30))
    evaluator.evaluate(np.repeat(BLANK, 9, 0), [DOG] * 9)  # one picture, asked about nine times
    with pytest.raises(DetectorError, match="nothing in the first 32 pictures.*above a score of 0.3, got 0.30 at most"):
        evaluator.evaluate(BLANK, [DOG])


def test_one_object_in_the_first_32_pictures_is_enough():
    detector = Told()
    evaluator = PhotoEvaluator(detector, Painted("red"))
    evaluator.detect(np.repeat(BLANK, 31, 0))
    detector.objects = (("dog", 0.31),)
    evaluator.detect(BLANK)
    detector.objects = ()
    evaluator.detect(np.repeat(BLANK, 64, 0))


# --- Networks of tiny random size -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Mask2FormerForUniversalSegmentation:
    torch.manual_seed(0)
    return Mask2FormerForUniversalSegmentation(detector_config()).eval()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return folder


PHOTOS = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)


def test_a_batch_is_judged_as_its_pictures_alone(tiny):
    detector = ObjectDetector(loud(tiny), long=128, short=64)
    together, alone = detector(PHOTOS), [detector(photo[None])[0] for photo in PHOTOS]
    assert any(together)
    for a, b in zip(together, alone, strict=True):
        assert [d.cls for d in a] == [d.cls for d in b] and all(m.shape == (40, 56) for m in a.values())
        assert [d.score for d in a] == pytest.approx([d.score for d in b], abs=1e-4)


def test_the_detector_makes_of_the_network_what_geneval_makes_of_it(tiny):
    model = loud(tiny)
    (found,) = ObjectDetector(model, long=128, short=64)(PHOTOS[:1])
    pixels, size = prepare(torch.from_numpy(PHOTOS[:1]), 128, 64)
    with torch.no_grad():
        answer = model(pixel_values=pixels)
    classes, masks = answer.class_queries_logits[0], answer.masks_queries_logits[0]
    assert size == (64, 90) and pixels.shape[-2:] == (64, 96)
    assert found.keys() == objects_of(classes, masks, (64, 96), (64, 90), (40, 56)).keys()


def test_the_whole_evaluator_runs_from_folders_and_checks_itself(tiny, clip_folder, tmp_path):
    loud(tiny).save_pretrained(tmp_path / "detector")
    evaluator = loaders.load_evaluator(SCALES["showo"], str(tmp_path / "detector"), str(clip_folder), 2)
    evaluator.detector.long, evaluator.detector.short = 128, 64
    evaluator.self_check()
    (cls,) = {d.cls for d in evaluator.detect(PHOTOS[:1])[0][:1]}
    (verdict,) = evaluator.evaluate(PHOTOS[:1], [compose("x", (Clause(cls),))])
    assert verdict.correct
    colors = [compose(c, (Clause(cls, color=c),)) for c in COLORS]
    assert sum(v.correct for v in evaluator.evaluate(np.repeat(PHOTOS[:1], 10, 0), colors)) == 1
    assert "torchvision" not in sys.modules


def test_a_clip_for_larger_pictures_than_the_usual_ones_is_checked_too(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "detector")
    write_clip(tmp_path / "clip", side=336)
    loaders.load_evaluator(SCALES["showo"], str(tmp_path / "detector"), str(tmp_path / "clip"), 2).self_check()


def test_answers_that_differ_between_devices_are_refused(tiny):
    from cotlib.detect import _both_logits

    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    check_same("detector", _both_logits, noise, tiny, copy.deepcopy(tiny))
    other = copy.deepcopy(tiny)
    other.model.pixel_level_module.decoder.encoder.layers[0].self_attn.value_proj.weight.data.neg_()
    with pytest.raises(DetectorError, match="on cpu and on the processor .* other answers"):
        check_same("detector", _both_logits, noise, other, tiny)
    other.class_predictor.bias.data.fill_(math.nan)
    with pytest.raises(DetectorError, match="nan of their spread"):
        check_same("detector", _both_logits, noise, other, other)


# --- Weights from the hub -------------------------------------------------------------------------------------------


def test_weights_that_are_nowhere_name_what_to_type(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", no_network)
    with pytest.raises(IncompleteError) as missing:
        loaders.load_evaluator(SCALES["showo512"])
    for part in (hub.DETECTOR, "no network", f"hf download {hub.DETECTOR}", "--detector"):
        assert part in str(missing.value)


@pytest.mark.parametrize("name", ["./weights", "/weights/mask2former", "a/b/c", "weights.safetensors"])
def test_a_path_to_nothing_is_not_looked_for_on_the_hub(monkeypatch, name):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(IncompleteError, match=f"no detector weights at {name}"):
        hub.find(name, "detector")


def test_the_evaluator_is_loaded_once_a_process():
    assert loaders.trusted_evaluator(SCALES["pocket"]) is loaders.load_evaluator(SCALES["pocket"])


def test_a_revision_of_a_hub_name_is_passed_on(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **rest: asked.update(rest, name=name) or tmp_path)
    assert hub.find("someone/something@refs/pr/2", "clip") == tmp_path
    assert (asked["name"], asked["revision"]) == ("someone/something", "refs/pr/2")


def test_a_pocket_scale_takes_no_other_detector():
    with pytest.raises(ValueError, match="drop --detector and --clip"):
        loaders.load_evaluator(SCALES["pocket"], "somewhere")


def test_a_missing_weight_is_an_error_not_a_random_number(tiny, clip_folder, tmp_path):
    for model, load in ((tiny, hub.load_mask2former), (CLIPModel.from_pretrained(clip_folder), hub.load_clip)):
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights[dropped := min(name for name in weights if name.endswith("fc1.weight"))]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CorruptError, match=r"weights are missing \(1\), the first .*fc1\.weight") as error:
            load(tmp_path)
        assert dropped.rpartition("layers")[2] in str(error.value)


def test_a_detector_of_other_classes_is_refused(tiny, tmp_path):
    config = detector_config()
    config.id2label = {i: str(i) for i in range(133)}
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    with pytest.raises(CorruptError, match="expected a detector of the 80 COCO instances, got one of 133"):
        hub.load_mask2former(tmp_path)


def test_clip_without_its_tokenizer_is_refused(clip_folder, tmp_path):
    CLIPModel.from_pretrained(clip_folder).save_pretrained(tmp_path)
    with pytest.raises(CorruptError, match="no tokenizer or image processor"):
        hub.load_clip(tmp_path)


def test_pickles_are_refused_with_a_recipe_that_works(tmp_path, monkeypatch):
    path = tmp_path / "mask2former.pth"
    torch.save({"meta": {"epoch": 50}, "state_dict": {"backbone.norm0.bias": torch.arange(3.0)}}, path)
    with pytest.raises(ValueError, match="never loaded") as refusal:
        hub.find(str(path), "detector")
    with pytest.raises(ValueError, match="never loaded"):
        hub.load_mask2former(tmp_path)
    script = re.search(r'-c "(.*)"', str(refusal.value))[1]
    assert "weights_only=True" in script
    exec(script, {})
    assert load_file(tmp_path / "mask2former.safetensors")["backbone.norm0.bias"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["weights.txt", "weights"])
def test_files_that_are_no_safetensors_are_refused(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match="expected weights as .safetensors"):
        hub.load_mask2former(tmp_path / name)


# --- GenEval's own weights --------------------------------------------------------------------------------------------


def official_shapes(embed=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24), dim=256, queries=100, **layers):
    """Names and shapes of mmdetection 2.28's Mask2Former with a Swin backbone, module by module."""
    pixel_layers, pixel_ffn = layers.get("pixel_layers", 6), layers.get("pixel_ffn", 1024)
    decoder_layers, decoder_ffn = layers.get("decoder_layers", 9), layers.get("decoder_ffn", 2048)
    attention_heads = layers.get("attention_heads", 8)
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    add("backbone.patch_embed.projection", embed, 3, 4, 4)
    add("backbone.patch_embed.norm", embed)
    for s, (depth, n_heads) in enumerate(zip(depths, heads, strict=True)):
        width = embed * 2**s
        for b in range(depth):
            block = f"backbone.stages.{s}.blocks.{b}"
            add(f"{block}.norm1", width)
            shapes[f"{block}.attn.w_msa.relative_position_bias_table"] = (13 * 13, n_heads)
            shapes[f"{block}.attn.w_msa.relative_position_index"] = (49, 49)
            add(f"{block}.attn.w_msa.qkv", 3 * width, width)
            add(f"{block}.attn.w_msa.proj", width, width)
            add(f"{block}.norm2", width)
            add(f"{block}.ffn.layers.0.0", 4 * width, width)
            add(f"{block}.ffn.layers.1", width, 4 * width)
        if s < 3:
            add(f"backbone.stages.{s}.downsample.norm", 4 * width)
            add(f"backbone.stages.{s}.downsample.reduction", 2 * width, 4 * width, bias=False)
        add(f"backbone.norm{s}", width)
    pixel = "panoptic_head.pixel_decoder"
    for i in range(3):
        add(f"{pixel}.input_convs.{i}.conv", dim, embed * 2 ** (3 - i), 1, 1)
        add(f"{pixel}.input_convs.{i}.gn", dim)
    for i in range(pixel_layers):
        layer = f"{pixel}.encoder.layers.{i}"
        add(f"{layer}.attentions.0.sampling_offsets", attention_heads * 3 * 4 * 2, dim)
        add(f"{layer}.attentions.0.attention_weights", attention_heads * 3 * 4, dim)
        add(f"{layer}.attentions.0.value_proj", dim, dim)
        add(f"{layer}.attentions.0.output_proj", dim, dim)
        add(f"{layer}.ffns.0.layers.0.0", pixel_ffn, dim)
        add(f"{layer}.ffns.0.layers.1", dim, pixel_ffn)
        add(f"{layer}.norms.0", dim)
        add(f"{layer}.norms.1", dim)
    add(f"{pixel}.level_encoding", 3, dim, bias=False)
    add(f"{pixel}.lateral_convs.0.conv", dim, embed, 1, 1, bias=False)
    add(f"{pixel}.lateral_convs.0.gn", dim)
    add(f"{pixel}.output_convs.0.conv", dim, dim, 3, 3, bias=False)
    add(f"{pixel}.output_convs.0.gn", dim)
    add(f"{pixel}.mask_feature", dim, dim, 1, 1)
    for i in range(decoder_layers):
        layer = f"panoptic_head.transformer_decoder.layers.{i}"
        for a in range(2):
            shapes[f"{layer}.attentions.{a}.attn.in_proj_weight"] = (3 * dim, dim)
            shapes[f"{layer}.attentions.{a}.attn.in_proj_bias"] = (3 * dim,)
            add(f"{layer}.attentions.{a}.attn.out_proj", dim, dim)
        add(f"{layer}.ffns.0.layers.0.0", decoder_ffn, dim)
        add(f"{layer}.ffns.0.layers.1", dim, decoder_ffn)
        for n in range(3):
            add(f"{layer}.norms.{n}", dim)
    add("panoptic_head.transformer_decoder.post_norm", dim)
    add("panoptic_head.query_embed", queries, dim, bias=False)
    add("panoptic_head.query_feat", queries, dim, bias=False)
    add("panoptic_head.level_embed", 3, dim, bias=False)
    add("panoptic_head.cls_embed", 81, dim)
    for i in (0, 2, 4):
        add(f"panoptic_head.mask_embed.{i}", dim, dim)
    return shapes


TINY_SHAPES = official_shapes(
    embed=8,
    depths=(1, 2, 1, 1),
    heads=(1, 1, 2, 2),
    dim=32,
    queries=6,
    pixel_layers=1,
    pixel_ffn=24,
    decoder_layers=2,
    decoder_ffn=40,
    attention_heads=2,
)


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    """Random weights under the official names, at tiny size."""
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=rng) / 8 for name, shape in TINY_SHAPES.items()}


def test_every_official_weight_finds_its_place_and_none_is_missing():
    weights = {name: torch.empty(shape, device="meta") for name, shape in official_shapes().items()}
    with torch.device("meta"):
        ours = Mask2FormerForUniversalSegmentation(official_config()).state_dict()
    converted = convert(weights)
    assert ours.keys() - converted.keys() == set(UNUSED) and converted.keys() <= ours.keys()
    assert {name: tensor.shape for name, tensor in converted.items()} == {n: ours[n].shape for n in converted}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.norm2.weight", "model.pixel_level_module.encoder.hidden_states_norms.stage3.weight"),
        (
            "backbone.stages.1.blocks.1.norm2.bias",
            "model.pixel_level_module.encoder.swin.encoder.layers.1.blocks.1.layernorm_after.bias",
        ),
        (
            "backbone.stages.1.blocks.0.ffn.layers.1.weight",
            "model.pixel_level_module.encoder.swin.encoder.layers.1.blocks.0.mlp.fc2.weight",
        ),
        # in the pixel decoder the second norm is the last; in the other decoder cross attention comes first
        (
            "panoptic_head.pixel_decoder.encoder.layers.0.norms.1.weight",
            "model.pixel_level_module.decoder.encoder.layers.0.final_layer_norm.weight",
        ),
        (
            "panoptic_head.transformer_decoder.layers.1.norms.0.weight",
            "model.transformer_module.decoder.layers.1.cross_attn_layer_norm.weight",
        ),
        (
            "panoptic_head.transformer_decoder.layers.1.norms.1.weight",
            "model.transformer_module.decoder.layers.1.self_attn_layer_norm.weight",
        ),
        (
            "panoptic_head.transformer_decoder.layers.1.norms.2.weight",
            "model.transformer_module.decoder.layers.1.final_layer_norm.weight",
        ),
        (
            "panoptic_head.transformer_decoder.layers.0.attentions.0.attn.in_proj_weight",
            "model.transformer_module.decoder.layers.0.cross_attn.in_proj_weight",
        ),
        (
            "panoptic_head.transformer_decoder.layers.0.attentions.1.attn.out_proj.weight",
            "model.transformer_module.decoder.layers.0.self_attn.out_proj.weight",
        ),
        ("panoptic_head.query_feat.weight", "model.transformer_module.queries_features.weight"),
        ("panoptic_head.query_embed.weight", "model.transformer_module.queries_embedder.weight"),
        ("panoptic_head.level_embed.weight", "model.transformer_module.level_embed.weight"),
        ("panoptic_head.pixel_decoder.level_encoding.weight", "model.pixel_level_module.decoder.level_embed"),
        (
            "panoptic_head.mask_embed.4.weight",
            "model.transformer_module.decoder.mask_predictor.mask_embedder.2.0.weight",
        ),
        ("panoptic_head.cls_embed.bias", "class_predictor.bias"),
    ],
)
def test_names_that_could_be_mistaken_for_each_other(official, theirs, ours):
    assert torch.equal(convert(official)[ours], official[theirs])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            "backbone.stages.0.blocks.0.attn.w_msa.qkv.",
            "model.pixel_level_module.encoder.swin.encoder.layers.0.blocks.0.attention.{}_proj.",
        ),
        (
            "panoptic_head.transformer_decoder.layers.1.attentions.1.attn.in_proj_",
            "model.transformer_module.decoder.layers.1.self_attn.{}_proj.",
        ),
    ],
)
def test_queries_keys_and_values_of_the_stacked_matrix(official, theirs, ours):
    weight, bias = official[f"{theirs}weight"], official[f"{theirs}bias"]
    x = torch.randn(5, weight.shape[1])
    stacked = F.linear(x, weight, bias).view(5, 3, -1)
    converted = convert(official)
    for i, part in enumerate("qkv"):
        name = ours.format(part)
        assert torch.allclose(
            F.linear(x, converted[f"{name}weight"], converted[f"{name}bias"]), stacked[:, i], atol=1e-6
        )


def test_patches_merge_as_with_unfold(official, tiny):
    name = "backbone.stages.0.downsample."
    merging = copy.deepcopy(tiny.model.pixel_level_module.encoder.swin.encoder.layers[0].downsample)
    merging.load_state_dict({key[len(name) :]: by_patch(w) for key, w in official.items() if key.startswith(name)})
    x = torch.randn(2, 8, 6, 10)  # [B, C, H, W]
    patches = F.unfold(x, kernel_size=2, stride=2).transpose(1, 2)  # [B, H/2 * W/2, 4C], as mmdetection merges
    theirs = F.layer_norm(patches, patches.shape[-1:], official[f"{name}norm.weight"], official[f"{name}norm.bias"])
    theirs = F.linear(theirs, official[f"{name}reduction.weight"])
    assert torch.allclose(merging(x.flatten(2).transpose(1, 2), (6, 10)), theirs, atol=1e-5)


@pytest.fixture
def official_file(official, tmp_path, monkeypatch):
    """Writes the weights, changed by `edit`, as a file of the official layout."""
    monkeypatch.setattr("cotlib.mask2former_keys.official_config", detector_config)

    def write(edit=lambda weights: None):
        weights = dict(official)
        edit(weights)
        save_file(weights, tmp_path / "official.safetensors")
        return tmp_path / "official.safetensors"

    return write


def test_the_official_file_loads_and_runs(official_file, official):
    for path in (official_file(), official_file().parent):  # the file, or the folder that holds it
        model = hub.load_mask2former(path)
        assert torch.equal(model.class_predictor.weight, official["panoptic_head.cls_embed.weight"])
        assert not model.training and len(ObjectDetector(model, 128, 64)(PHOTOS)) == 3


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda w: w.pop("panoptic_head.query_feat.weight"),
            r"weights are missing \(1\), the first .*queries_features",
        ),
        (lambda w: w.update({"panoptic_head.new.weight": torch.ones(1)}), "1 of .* none of mmdetection 2.x's"),
        (
            lambda w: w.update({"panoptic_head.cls_embed.bias": torch.ones(134)}),
            r"weights do not fit \(1\).*class_pred",
        ),
        (lambda w: w.clear() or w.update(x=torch.ones(1)), "expected mmdetection's names .*, got 'x'"),
    ],
)
def test_a_file_that_is_not_the_official_one_is_refused(official_file, edit, said):
    with pytest.raises(CorruptError, match=said):
        hub.load_mask2former(official_file(edit))


def test_a_torn_file_is_refused(official_file):
    path = official_file()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptError, match="cannot read"):
        hub.load_mask2former(path)


def test_a_canary_of_pictures_is_only_as_good_as_its_labels():
    labelled = Labelled(BLANK[0], RED_DOG, True, "samples/0000.png")
    with pytest.raises(
        DetectorError, match="samples/0000.png.*expected right, got wrong .expected a red dog, found blue"
    ):
        check(PhotoEvaluator(Told(("dog", 0.9)), Painted("blue")), [labelled], "the evaluator", "mend it")
