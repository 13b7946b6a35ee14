"""Fine-tuning a tiny judge with TRL, whole and with low-rank adapters; trained models on disk."""

import json
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_judge import judge, official, pictures  # noqa: F401
from transformers import LlavaOnevisionForConditionalGeneration, TrainingArguments

from cotlib import models
from cotlib.errors import CotlibError
from cotlib.judge import Judge, judge_tokenizer, outcome_question, pocket_judge_config
from cotlib.tuning import Collator, TuneOptions, fine_tune, on_one_device, seconds_before

ASKED = outcome_question("a photo of a dog")


def paint_of(size):
    """A code is a grey level."""

    def paint(codes):
        return np.broadcast_to(codes.numpy().astype(np.uint8)[:, :1, None, None], (len(codes), size, size, 3)).copy()

    return paint


def rows(n=64):
    """Bright pictures are dogs, dark ones are not."""
    bright = [i % 2 == 0 for i in range(n)]
    answers = [["yes" if b else "no"] for b in bright]
    codes = [[230 - i % 20 if b else 20 + i % 20] for i, b in enumerate(bright)]
    return Dataset.from_dict({"task": ["x"] * n, "codes": codes, "questions": [[ASKED]] * n, "answers": answers})


def fresh(width=32):
    torch.manual_seed(0)
    words = judge_tokenizer()
    return Judge(LlavaOnevisionForConditionalGeneration(pocket_judge_config(words, width, 1)).eval(), words)


def scores(judge, size=96):  # noqa: F811
    images = paint_of(size)(torch.tensor([[225], [25]]))
    return judge.p_yes(images, [ASKED] * 2)


def test_the_judge_learns_what_the_examples_say_and_training_is_repeatable(tmp_path):
    options = TuneOptions(epochs=8, batch_size=16, learning_rate=1e-2)
    learned = [fresh(), fresh()]
    before = torch.get_rng_state()
    logs = [fine_tune(j, rows(), paint_of(96), options, tmp_path) for j in learned]
    assert torch.equal(before, torch.get_rng_state())
    right = scores(learned[0])
    assert (right > 0.5).tolist() == [True, False]
    assert logs[0][-1]["loss"] < 0.5 * logs[0][0]["loss"] and logs[0][-1]["mean_token_accuracy"] > 0.9
    assert np.array_equal(right, scores(learned[1])) and not learned[0].model.training


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("last", [14, None])
def test_a_killed_fine_tuning_goes_on_from_its_last_whole_checkpoint_and_ends_alike(rank, last, tmp_path, monkeypatch):
    """Killed in the middle or after the last step; the batches of an epoch are no whole number."""
    monkeypatch.setattr("cotlib.judge.LEAST_MASS", 0.0)

    class Killed(BaseException):
        pass

    def counted(seen, last=None):
        """A progress that counts the steps of the optimizer, and kills the training at the last."""

        @contextmanager
        def progress(total, what, unit):
            def advance(n):
                seen.append(n)
                if sum(seen) == last:
                    raise Killed

            yield advance

        return progress

    options, whole, torn, resumed, steps = TuneOptions(11, 4, 1e-2, rank), fresh(), fresh(), fresh(), []
    log = fine_tune(whole, rows(18), paint_of(96), options, tmp_path / "whole")
    monkeypatch.setattr("cotlib.tuning.progress", counted([], last))
    with pytest.raises(Killed) if last else nullcontext():
        fine_tune(torn, rows(18), paint_of(96), options, tmp_path / "torn")
    (tmp_path / "torn/checkpoints/checkpoint-54").mkdir()  # killed again while it wrote the next one
    monkeypatch.setattr("cotlib.tuning.progress", counted(steps))
    before = seconds_before(tmp_path / "torn/checkpoints")
    again = fine_tune(resumed, rows(18), paint_of(96), options, tmp_path / "torn")
    assert 0 < before and (last is None or before < seconds_before(tmp_path / "torn/checkpoints"))
    assert sum(steps) == 55 and 1 < steps[0]  # it did not begin anew
    assert [(r["step"], r["loss"]) for r in again] == [(r["step"], r["loss"]) for r in log]
    assert np.array_equal(scores(whole), scores(resumed))


def test_one_step_of_training_changes_weights(tmp_path):
    judge, before = fresh(), fresh().model.state_dict()  # noqa: F811
    fine_tune(judge, rows(8), paint_of(96), TuneOptions(1, 8, 1e-2), tmp_path)
    assert not all(torch.equal(tensor, before[name]) for name, tensor in judge.model.state_dict().items())


def test_the_log_holds_numbers_only_whatever_the_attention(tmp_path):
    judge = fresh()  # noqa: F811
    judge.model.set_attn_implementation("eager")
    log = fine_tune(judge, rows(16), paint_of(96), TuneOptions(1, 8), tmp_path)
    assert log and all(np.isfinite(value) for record in log for value in record.values())


def test_the_same_code_adapts_the_official_layout_and_it_reloads(official, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("cotlib.judge.LEAST_MASS", 0.0)
    tuned = Judge.from_pretrained(official)
    before, frozen = scores(tuned, 28), tuned.model.model.vision_tower.state_dict()
    frozen = {k: v.clone() for k, v in frozen.items()}
    log = fine_tune(tuned, rows(32), paint_of(28), TuneOptions(4, 8, 3e-3, lora_rank=4), tmp_path / "run")
    after = scores(tuned, 28)
    assert log[-1]["loss"] < log[0]["loss"] and np.abs(after - before).max() > 1e-3
    assert all(torch.equal(v, frozen[k]) for k, v in tuned.model.model.vision_tower.state_dict().items())
    tuned.save_pretrained(tmp_path / "saved")
    assert np.allclose(scores(Judge.from_pretrained(tmp_path / "saved"), 28), after, atol=1e-6)


def test_the_collator_paints_codes_and_labels_answers(judge):  # noqa: F811
    inputs = Collator(judge, paint_of(96))([rows(2)[i] for i in range(2)])
    assert inputs["pixel_values"].shape == (2, 3, 96, 96) and (inputs["labels"] != -100).sum() == 2
    assert inputs["pixel_values"][0].mean() > 0.5 > inputs["pixel_values"][1].mean()


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"lora_rank": 0}])
def test_options_that_train_nothing_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TuneOptions(**bad)


def test_no_examples_are_refused(judge, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="no examples"):
        fine_tune(judge, rows(2).select([]), paint_of(96), TuneOptions(), tmp_path)


# --- Models on disk ---


class Trains:
    """Writes a file and counts how often it was asked to."""

    def __init__(self, fails=False):
        self.n, self.fails = 0, fails

    def __call__(self, folder):
        self.n += 1
        (folder / "weights").write_text("w")
        if self.fails:
            raise KeyboardInterrupt
        return {"seconds": 1.0}


def test_a_model_is_trained_once_and_found_again_by_what_it_depends_on(tmp_path):
    train = Trains()
    first = models.trained(tmp_path, "orm", {"a": 1}, train)
    assert models.trained(tmp_path, "orm", {"a": 1}, train) == first and train.n == 1
    assert models.trained(tmp_path, "orm", {"a": 2}, train) != first and train.n == 2
    assert models.notes(first) == {"seconds": 1.0}


def test_an_interrupted_training_leaves_its_checkpoints_to_the_next_and_nothing_else(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        models.trained(tmp_path, "orm", {}, Trains(fails=True))
    folder = models.folder_of(tmp_path, "orm", {})
    for litter in (".tmpA1b2C3", "data/.README.md.x.tmp", f"{models.CHECKPOINTS}/checkpoint-1/weights"):
        (folder / litter).parent.mkdir(parents=True, exist_ok=True)
        (folder / litter).write_text("x")
    found, train = [], Trains()
    models.trained(tmp_path, "orm", {}, lambda at: found.extend(sorted(p.name for p in at.iterdir())) or train(at))
    assert train.n == 1 and found == [models.CHECKPOINTS]
    assert sorted(path.name for path in folder.iterdir()) == [models.MANIFEST, "weights"]
    assert list(json.loads((folder / models.MANIFEST).read_text())["files"]) == ["weights"]


def test_a_model_that_somebody_trains_is_left_to_him(tmp_path):
    def both(folder):
        notes = Trains()(folder)
        with pytest.raises(CotlibError, match="orm-.* is being made by another process.*wait for it"):
            models.trained(tmp_path, "orm", {}, Trains(fails=True))
        models.trained(tmp_path, "prm", {}, Trains())  # another one may be trained meanwhile
        return notes

    folder = models.trained(tmp_path, "orm", {}, both)
    assert models.is_whole(folder) and models.trained(tmp_path, "orm", {}, Trains(fails=True)) == folder


def test_checkpoints_that_a_kill_left_in_a_finished_model_go(tmp_path):
    folder = models.trained(tmp_path, "orm", {}, Trains())
    (folder / models.CHECKPOINTS).mkdir()
    assert models.trained(tmp_path, "orm", {}, Trains()) == folder and not (folder / models.CHECKPOINTS).exists()


@pytest.mark.parametrize("harm", ["weights changed", "weights gone", "manifest torn", "manifest of another kind"])
def test_a_damaged_model_is_set_aside_and_trained_again(tmp_path, harm, capsys):
    train = Trains()
    folder = models.trained(tmp_path, "orm", {}, train)
    manifest = folder / models.MANIFEST
    {
        "weights changed": lambda: (folder / "weights").write_text("x"),
        "weights gone": lambda: (folder / "weights").unlink(),
        "manifest torn": lambda: manifest.write_text(manifest.read_text()[:-30]),
        "manifest of another kind": lambda: manifest.write_text(json.dumps([1])),
    }[harm]()
    assert models.trained(tmp_path, "orm", {}, train) == folder and train.n == 2
    assert (tmp_path / f"{folder.name}.corrupt").is_dir() and "set aside" in capsys.readouterr().out


def test_trainers_use_one_device_of_many(tmp_path):
    settings = on_one_device(TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    assert settings.n_gpu == 0
    settings._n_gpu = 2
    assert on_one_device(settings).n_gpu == 1
