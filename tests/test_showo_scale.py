"""Scale `showo` on tiny weights in the published layout: found, refused, in the key, and run by the notebook."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_weights import write_everything, write_generator
from test_judge import official  # noqa: F401  (fixture)

from cotlib import chain, hub, loaders, paths, provenance, stages, verifiers
from cotlib.config import PARTS, SCALES, check
from cotlib.errors import DetectorError, ForeignError, IncompleteError, OutOfMemoryError
from cotlib.judge import Judge
from cotlib.run import load

SHOWO = SCALES["showo"]
BASELINE = [part for part in PARTS if part != "judge"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    return write_everything(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def weights(everything, tmp_path, monkeypatch) -> Path:
    """A folder of links, to be changed at will; models are loaded anew."""
    folder = tmp_path / "weights"
    for file in everything.rglob("*.*"):
        if file.is_file():
            copy = folder / file.relative_to(everything)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(file)
    monkeypatch.setenv("COTLIB_WEIGHTS", str(folder))
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path / "outputs"))
    forget()
    yield folder
    forget()


def forget() -> None:
    for cached in (loaders.load_tokenizer, loaders._decoding, loaders._evaluator, loaders.trusted_evaluator):
        cached.cache_clear()
    loaders._large.clear()


def remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def key(scale: str = "showo", notebook: str = "01_baseline") -> str:
    return provenance.run_key(check(notebook, scale=scale, effort="smoke", seed=0))[0]


# --- The notebook ---


def test_the_baseline_runs_from_prompt_to_table_on_published_folders(everything, tmp_path):
    few = ("n_prompts_per_task=1", "n_candidates=2", "steps=2", "batch_size=2")
    command = [sys.executable, "-m", "cotlib", "run", "01_baseline", "--scale", "showo", "--effort", "smoke"]
    command += [word for setting in few for word in ("--set", setting)]
    places = {"COTLIB_WEIGHTS": str(everything), "COTLIB_OUTPUTS": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **places}, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "showo" / "smoke" / "01_baseline"
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["depends_on"]["weights"].keys() == set(BASELINE) and all(manifest["depends_on"]["weights"].values())
    assert manifest["counts"]["ok"] == 12
    measured = {record["name"] for record in json.loads((folder / "metrics.json").read_text())}
    assert {"geneval/base/none/overall", "speed/decode", "speed/evaluate"} <= measured
    drawn_only = ("evaluator/", "tokenizer/", "speed/judge")
    assert not [name for name in measured if name.startswith(drawn_only)]
    assert {file.stem for file in (folder / "figures").iterdir()} == {"geneval_by_task", "film_strip", "gallery"}
    lines = (tmp_path / "showo/smoke/pools/base-0.jsonl").read_text().splitlines()
    assert paths.unpack(json.loads(lines[1])["paths"][0]).shape == (2, 256)


# --- The key ---


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("generator", "pytorch_model.safetensors"),
        ("generator", "config.json"),
        ("text-tokenizer", "tokenizer.json"),
        ("tokenizer", "pytorch_model.safetensors"),
        ("detector", "model.safetensors"),
        ("clip", "model.safetensors"),
    ],
)
def test_other_weights_of_any_part_are_another_key(weights, part, file):
    before = key()
    (weights / part / file).unlink()
    (weights / part / file).write_bytes(b"others")
    assert key() != before and key() == key()


def test_the_pools_are_kept_by_the_weights_that_made_them(weights):
    run = load("01_baseline", scale="showo", effort="smoke", seed=0)
    before = stages.weights_digest(run, "generator"), stages.weights_digest(run, "tokenizer", "detector")
    assert before[0].keys() == {"generator", "text-tokenizer"} and before[1].keys() == {"tokenizer", "detector", "clip"}
    (weights / "text-tokenizer" / "tokenizer.json").unlink()
    (weights / "text-tokenizer" / "tokenizer.json").write_text("{}")
    assert stages.weights_digest(run, "generator") != before[0]
    assert stages.weights_digest(run, "tokenizer", "detector") == before[1]


def test_a_key_asks_no_network_and_needs_no_weights(monkeypatch):
    monkeypatch.delenv("COTLIB_WEIGHTS", raising=False)

    def offline(*_, local_files_only, **__):
        assert local_files_only
        raise OSError("not cached")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    assert provenance.weights_digest("showo", BASELINE) == dict.fromkeys(BASELINE)
    assert key("showo") != key("showo512")


def test_looking_for_weights_loads_no_torch():
    code = "import sys; from cotlib import hub; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# --- What is missing ---


def test_every_part_that_is_missing_is_named_with_its_place_and_command(weights):
    for part in BASELINE:
        remove(weights / part)
    with pytest.raises(IncompleteError, match="lacks 5 of its weights") as missing:
        load("01_baseline", scale="showo", effort="smoke", seed=0)
    for part, name in {**hub.PUBLISHED, "generator": "showlab/show-o"}.items():
        is_named = f"Put them into {weights / part}" in str(missing.value) and f"hf download {name}" in str(
            missing.value
        )
        assert is_named == (part != "judge")
    assert "hf download microsoft/phi-1_5 tokenizer.json" in str(missing.value)  # 3 files, not its 3 GB


def test_without_a_folder_the_hub_is_asked_and_the_folder_is_told(monkeypatch):
    asked = []

    def offline(name, **options):
        asked.append((name, options["allow_patterns"]))
        raise OSError("no network")

    monkeypatch.delenv("COTLIB_WEIGHTS", raising=False)
    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(IncompleteError, match="FOLDER/tokenizer and export COTLIB_WEIGHTS=FOLDER"):
        hub.require(SCALES["showo512"], BASELINE)
    assert {name for name, _ in asked} == {"showlab/show-o-512x512", *list(hub.PUBLISHED.values())[:4]}
    assert all("tokenizer.json" in patterns for name, patterns in asked if name == "microsoft/phi-1_5")


def test_a_chain_with_weights_missing_starts_nothing(weights):
    remove(weights / "clip")
    with pytest.raises(IncompleteError, match=r"(?s)lacks 1 of its weights.*no clip weights"):
        chain.run_chain(["01_baseline"], scale="showo", effort="smoke")
    assert not provenance.outputs_of("showo", "smoke").exists()


def test_a_pickle_in_the_place_of_weights_is_refused(weights):
    remove(weights / "generator")
    (weights / "generator").mkdir()
    (weights / "generator" / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ValueError, match="never loaded"):
        load("01_baseline", scale="showo", effort="smoke", seed=0)


def test_a_generator_with_a_text_tokenizer_beside_it_needs_no_other(weights):
    generator = loaders.load_generator(SHOWO)
    remove(weights / "generator")
    generator.float().save_pretrained(weights / "generator")
    remove(weights / "text-tokenizer")
    forget()
    again = loaders.load_generator(SHOWO)
    assert hub.folder_of(SHOWO, "text-tokenizer") == weights / "generator"
    assert again.text_ids(["a photo of a dog"]).tolist() == generator.text_ids(["a photo of a dog"]).tolist()


# --- What does not fit ---


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_tokens": 1024}, "256 tokens out of 64 codes, this generator makes 1024 out of 64"),
        ({"bits": 5}, "256 tokens out of 64 codes, this generator makes 256 out of 32"),
    ],
)
def test_a_generator_of_other_pictures_is_refused(weights, sizes, message):
    remove(weights / "generator")
    write_generator(weights / "generator", weights / "text-tokenizer", **sizes)
    with pytest.raises(ForeignError, match=message):
        loaders.load_generator(SHOWO)


def test_the_512_px_scale_has_the_same_tokenizer_and_its_own_generator(weights):
    remove(weights / "generator")
    write_generator(weights / "generator", weights / "text-tokenizer", n_tokens=1024)
    large = SCALES["showo512"]
    assert loaders.load_generator(large).config.num_vq_tokens == large.n_tokens == 1024
    assert loaders.load_tokenizer(large).image_size == 512


def test_a_batch_that_does_not_fit_is_halved_where_speed_is_measured(weights, monkeypatch):
    """Smaller batches of the same pictures; one that does not fit even alone says what to do."""
    run = load("01_baseline", scale="showo", effort="quick", seed=0, n_candidates=1, steps=1, batch_size=4)
    generator, sizes, most = loaders.load_generator(SHOWO), [], 2
    whole = generator.hidden_after

    def small(prefix, codes, masked):
        sizes.append(len(codes) // 2)  # two rows a candidate: guidance
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(prefix, codes, masked)

    monkeypatch.setattr(generator, "hidden_after", small)
    monkeypatch.setattr(loaders.load_evaluator(SHOWO), "evaluate", lambda images, prompts: assert_four(images, prompts))
    assert {name: n for name, (_, n) in stages.measure_speed(run).items()} == {"speed/decode": 4, "speed/evaluate": 4}
    assert sizes[:3] == [4, 2, 2] and max(sizes[1:]) == 2
    most = 0
    with pytest.raises(OutOfMemoryError, match="decoding: not even one picture.*free some memory"):
        stages.measure_speed(run)


def assert_four(images, prompts) -> None:
    assert images.shape == (4, 256, 256, 3) and len(prompts) == 4


def test_the_judge_of_photographs_is_asked_for_by_name_and_read_as_published(weights, official):  # noqa: F811
    with pytest.raises(IncompleteError, match="no judge weights.*hf download llava-hf/llava-onevision-qwen2-7b-ov-hf"):
        loaders.load_judge(SHOWO)
    shutil.copytree(official, weights / "judge")
    judge = loaders.load_judge(SHOWO)
    assert judge.image_size == 28 and judge.say(np.zeros((1, 256, 256, 3), np.uint8), ["yes?"], 2)


def test_of_large_judges_one_is_in_memory_and_none_before_it_is_asked(weights, official, monkeypatch):  # noqa: F811
    """Verifiers of several judges are at hand together; two judges of 15 GB beside a step of DPO are too much."""
    shutil.copytree(official, weights / "judge")
    monkeypatch.setattr(stages.judges, "JUDGES", {"orm": lambda run: SimpleNamespace(folder=weights / "judge-orm")})
    shutil.copytree(official, weights / "judge-orm")
    kept, read = [], Judge.from_pretrained

    def followed(folder, *how):
        assert not any(judge() for _, judge in kept), "two judges at once"
        judge = read(folder, *how)
        kept.append((Path(folder).name, weakref.ref(judge)))
        return judge

    monkeypatch.setattr(Judge, "from_pretrained", followed)
    run = load("01_baseline", scale="showo", effort="smoke", seed=0)
    zero_shot, orm = (stages.verifier_score(run, verifiers.named(name))[0] for name in ("orm-zero-shot", "orm"))
    assert not kept
    for score in (zero_shot, zero_shot, orm, zero_shot):
        score(np.zeros((1, 256, 256, 3), np.uint8), [run.prompts[0]])
    assert [name for name, _ in kept] == ["judge", "judge-orm", "judge"]
    assert [judge() is not None for _, judge in kept] == [False, False, True]


def test_a_canary_that_fails_scores_nothing(weights, monkeypatch):
    """The notebook's evaluator checks itself: a network that gives no numbers is refused."""
    evaluator = loaders.load_evaluator(SHOWO)
    evaluator.detector.model.class_predictor.bias.data.fill_(float("nan"))
    with pytest.raises(DetectorError):
        loaders.trusted_evaluator(SHOWO)
