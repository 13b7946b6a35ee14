"""Fetching weights, and what the doctor says of them: a hub that lives in a folder, and no network."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

import cotlib
from cotlib import doctor, fetch, hub, provenance
from cotlib.__main__ import main
from cotlib.config import PARTS, SCALES
from cotlib.errors import CorruptError, CotlibError, ForeignError, IncompleteError

SHOWO = SCALES["showo"]
OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"  # commits
FILES = {"model.safetensors": b"w" * 100, "config.json": b"{}", "tokenizer.json": b"{}", "model.bin": b"p" * 500}


class FakeHub:
    """Repositories that all hold `files`, generators without a text tokenizer; counts what is asked of it."""

    def __init__(self):
        self.main, self.files, self.is_reachable = OLD, dict(FILES), True
        self.downloads, self.stop_after = [], None

    def model_info(self, repository, *, revision, files_metadata):
        assert files_metadata  # without it the hub tells no sizes
        if not self.is_reachable:
            raise ConnectionError("no route to the hub\nand more")
        siblings = [SimpleNamespace(rfilename=n, size=len(self.files[n])) for n in self.names(repository)]
        return SimpleNamespace(sha=self.main if revision == "main" else revision, siblings=siblings)

    def names(self, repository):
        return [name for name in self.files if name != "tokenizer.json" or "show-o" not in repository]

    def snapshot_download(self, repository, *, revision, allow_patterns, local_dir):
        self.downloads.append((repository, revision))
        cache = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots" / revision
        folder = Path(local_dir or cache)
        wanted = [n for n in self.names(repository) if any(Path(n).match(pattern) for pattern in allow_patterns)]
        for number, name in enumerate(wanted):
            if self.stop_after == number:
                raise KeyboardInterrupt
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / name).exists():  # what is there is taken as it is, whatever its size
                (folder / name).write_bytes(self.files[name])


@pytest.fixture
def theirs(monkeypatch, tmp_path) -> FakeHub:
    """The hub; the cache is an empty folder and COTLIB_WEIGHTS is not set."""
    fake = FakeHub()
    monkeypatch.setattr(fetch, "HfApi", lambda: fake)
    monkeypatch.setattr(fetch, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # for all that is not the fake
    monkeypatch.delenv(provenance.WEIGHTS, raising=False)
    return fake


@pytest.fixture
def root(theirs, monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv(provenance.WEIGHTS, str(tmp_path / "weights"))
    return tmp_path / "weights"


def record(root: Path) -> dict:
    return json.loads((root / "cotlib-fetched.json").read_text())


# --- Fetching ---


def test_every_part_arrives_and_nothing_that_is_not_read(theirs, root):
    fetch.fetch(SHOWO)
    for part in PARTS:
        names = {p.name for p in (root / part).iterdir()}
        weights = {"model.safetensors", "config.json", *(["tokenizer.json"] if part != "generator" else [])}
        assert names == ({"tokenizer.json"} if part == "text-tokenizer" else weights)
        assert fetch.check_whole(SHOWO, part) == root / part
    assert {entry["part"] for entry in record(root).values()} == set(PARTS)
    assert record(root)["showlab/show-o"]["revision"] == OLD


def test_what_is_there_is_not_fetched_again(theirs, root):
    fetch.fetch(SHOWO)
    assert len(theirs.downloads) == len(PARTS)
    fetch.fetch(SHOWO)
    assert len(theirs.downloads) == len(PARTS)


def test_one_part_can_be_had_alone(theirs, root):
    fetch.fetch(SHOWO, ["clip"])
    assert theirs.downloads == [(hub.CLIP, OLD)]
    with pytest.raises(ValueError, match="unknown part 'clips'; did you mean 'clip'"):
        fetch.fetch(SHOWO, ["clips"])


def test_a_disk_too_small_for_all_parts_is_told_before_the_first_byte(theirs, root, monkeypatch):
    sizes = {name: len(data) for name, data in FILES.items()}  # five parts with weights, five with text tokenizers
    needed = 5 * (sizes["model.safetensors"] + sizes["config.json"] + sizes["tokenizer.json"])
    monkeypatch.setattr(fetch, "free_disk", lambda folder: needed - 1)
    with pytest.raises(CotlibError, match=r"weights: .* GB to fetch, .* GB free; make room.*COTLIB_WEIGHTS"):
        fetch.fetch(SHOWO)
    assert not theirs.downloads and not root.exists()
    monkeypatch.setattr(fetch, "free_disk", lambda folder: needed)
    fetch.fetch(SHOWO)
    monkeypatch.setattr(fetch, "free_disk", lambda folder: 0)
    fetch.fetch(SHOWO)  # all is there: nothing is needed


def test_the_free_disk_is_that_of_the_nearest_folder_there_is(tmp_path):
    assert fetch.free_disk(tmp_path / "not" / "yet") == pytest.approx(fetch.free_disk(tmp_path), rel=0.1)


def test_an_interrupted_fetch_goes_on_at_the_same_revision(theirs, root, capsys):
    theirs.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(SHOWO, ["judge"])
    assert [p.name for p in (root / "judge").iterdir()] == ["model.safetensors"]
    theirs.stop_after, theirs.main = None, NEW
    capsys.readouterr()
    fetch.fetch(SHOWO, ["judge"])
    assert theirs.downloads[-1][1] == OLD and fetch.check_whole(SHOWO, "judge")
    assert "0.00 to fetch" in capsys.readouterr().out


def test_a_revision_in_the_name_is_the_one_that_is_fetched(theirs, root, monkeypatch):
    fetch.fetch(SHOWO, ["judge"])
    monkeypatch.setitem(hub.PUBLISHED, "judge", f"{hub.PUBLISHED['judge']}@{NEW}")
    (root / "judge" / "model.safetensors").unlink()
    fetch.fetch(SHOWO, ["judge"])
    assert [revision for _, revision in theirs.downloads] == [OLD, NEW]


def test_a_file_that_does_not_arrive_whole_is_told(theirs, root, monkeypatch):
    monkeypatch.setattr(fetch, "snapshot_download", lambda *_, **__: None)
    with pytest.raises(CorruptError, match=r"model\.safetensors did not arrive in its 100 bytes"):
        fetch.fetch(SHOWO, ["clip"])


def test_a_file_cut_short_later_is_told_and_fetched_again(theirs, root):
    fetch.fetch(SHOWO)
    (root / "clip" / "model.safetensors").write_bytes(b"w")
    with pytest.raises(CorruptError, match=r"has 1 of 100 bytes; go on with: cotlib fetch --scale showo --part clip"):
        fetch.check_whole(SHOWO, "clip")
    fetch.fetch(SHOWO)
    assert fetch.check_whole(SHOWO, "clip") and theirs.downloads[len(PARTS) :] == [(hub.CLIP, OLD)]


def test_pickles_alone_are_not_fetched(theirs, root):
    del theirs.files["model.safetensors"]
    with pytest.raises(IncompleteError, match=r"showlab/show-o at 0+1 has no \.safetensors"):
        fetch.fetch(SHOWO, ["generator"])
    assert not theirs.downloads


def test_weights_put_there_by_hand_are_left_alone(theirs, root):
    (root / "generator").mkdir(parents=True)
    (root / "generator" / "model.safetensors").write_bytes(b"mine")
    fetch.fetch(SHOWO)
    assert (root / "generator" / "model.safetensors").read_bytes() == b"mine"
    assert "showlab/show-o" not in record(root)


def test_what_a_link_in_the_folder_points_to_is_left_alone(theirs, root, tmp_path):
    fetch.fetch(SHOWO)
    (tmp_path / "mine").write_bytes(b"mine")
    place = root / "generator" / "model.safetensors"
    place.unlink()
    place.symlink_to(tmp_path / "mine")
    fetch.fetch(SHOWO)
    assert (tmp_path / "mine").read_bytes() == b"mine" and not place.is_symlink()


def test_another_scale_does_not_overwrite_a_generator_of_the_same_size(theirs, root):
    fetch.fetch(SHOWO)
    with pytest.raises(ForeignError, match="generator holds showlab/show-o, scale 'showo512' wants showlab/show-o-512"):
        fetch.fetch(SCALES["showo512"])
    assert len(theirs.downloads) == len(PARTS)


# --- Without a network ---


def test_without_a_network_it_says_what_is_missing_and_where_it_belongs(theirs, root, capsys):
    fetch.fetch(SHOWO, [part for part in PARTS if part not in ("judge", "clip")])
    theirs.is_reachable = False
    with pytest.raises(SystemExit) as end:
        main(["fetch", "--scale", "showo"])
    said = capsys.readouterr()
    assert end.value.code == 3 and "generator: there, in " in said.out
    assert "lacks 2 of its weights" in said.err and "Traceback" not in said.err
    assert "  judge: llava-hf/llava-onevision-qwen2-7b-ov-hf (no route to the hub)" in said.err
    assert "COTLIB_WEIGHTS=FOLDER cotlib fetch --scale showo --part clip --part judge" in said.err
    assert f"Carry FOLDER here as {root}" in said.err


def test_what_was_fetched_is_enough_without_a_network(theirs, root, capsys):
    fetch.fetch(SHOWO)
    theirs.is_reachable = False
    with pytest.raises(SystemExit) as end:
        main(["fetch", "--scale", "showo"])
    assert not end.value.code and "clip: there" in capsys.readouterr().out
    hub.require(SHOWO, PARTS)


def test_a_torn_file_counts_as_missing_without_a_network(theirs, root):
    fetch.fetch(SHOWO)
    theirs.is_reachable = False
    (root / "judge" / "model.safetensors").write_bytes(b"w")
    with pytest.raises(IncompleteError, match="lacks 1 of its weights"):
        fetch.fetch(SHOWO)


def test_the_cache_is_read_at_the_revision_that_was_fetched(theirs, tmp_path):
    fetch.fetch(SHOWO)
    snapshot = tmp_path / "cache" / "models--showlab--show-o" / "snapshots" / OLD
    assert hub.folder_of(SHOWO, "generator", download=False) == snapshot  # though nothing says which one is main
    assert fetch.check_whole(SHOWO, "generator") == snapshot and record(tmp_path / "cache")
    before = len(theirs.downloads)
    fetch.fetch(SHOWO)
    assert len(theirs.downloads) == before == len(PARTS)
    fetch.fetch(SCALES["showo512"])  # its own generator, and all else is there
    assert theirs.downloads[before:] == [("showlab/show-o-512x512", OLD)]


def test_a_torn_record_is_told(theirs, root):
    fetch.fetch(SHOWO, ["clip"])
    (root / "cotlib-fetched.json").write_text("{")
    with pytest.raises(CorruptError, match=r"cotlib-fetched\.json; remove it"):
        fetch.fetch(SHOWO)


def test_a_generator_with_a_text_tokenizer_of_its_own_is_whole_beside_a_fetched_one(theirs, root):
    fetch.fetch(SHOWO)
    (root / "generator" / "tokenizer.json").write_bytes(b"{ }")
    assert fetch.check_whole(SHOWO, "text-tokenizer") == root / "generator"


def test_nothing_is_fetched_for_a_scale_that_ships(theirs, capsys):
    fetch.fetch(SCALES["pocket"])
    assert "ships with cotlib" in capsys.readouterr().out and not theirs.downloads


# --- The doctor ---


@pytest.fixture
def outputs(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def measured(seed: int = 0, **speeds: float) -> Path:
    run = cotlib.load("01_baseline", scale="pocket", effort="quick", seed=seed)
    for name, value in speeds.items():
        run.record(f"speed/{name}", value)
    return run.finish(ok=1).parent


def test_the_doctor_names_the_machine_and_every_missing_part(theirs, outputs, root, capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    said = capsys.readouterr().out
    assert not end.value.code
    for what in ("Python 3", "torch ", "threads", "memory: ", f"disk for outputs: .* GB free in {outputs}", "GPU"):
        assert re.search(what, said), what
    for part in PARTS:
        assert f"{part}: MISSING, {hub.published(SHOWO, part)}; it belongs into {root / part}" in said
    assert said.count("cotlib fetch --scale showo512") == 1
    assert said.count("unknown, nothing was measured here yet") == len(SCALES)


def test_the_doctor_tells_weights_that_are_there_and_those_that_are_damaged(theirs, outputs, root):
    fetch.fetch(SHOWO)
    (root / "clip" / "model.safetensors").write_bytes(b"w")
    said = "\n".join(doctor.report(["showo"]))
    assert f"generator: 0.000 GB in {root / 'generator'}" in said and "clip" in said
    assert "has 1 of 100 bytes" in said and "MISSING" not in said


def test_the_doctor_reckons_with_the_newest_speeds_of_this_machine(outputs):
    measured(decode=20.0, judge=100.0)
    said = list(doctor.report(["pocket"]))
    assert any("measured in pocket/quick/01_baseline: decode 20 pictures/s, judge 100 pictures/s" in s for s in said)
    assert "  effort quick, 960 pictures: decode 48 s, judge 10 s" in said
    assert "  effort full, 33180 pictures: decode 27.6 min, judge 5.5 min" in said


def test_the_doctor_says_if_speeds_are_of_another_machine(outputs, monkeypatch):
    machine = provenance.machine()
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "machine", lambda: {**machine, "gpu": "Some GPU"})
        measured(decode=2000.0)
    assert any("on ANOTHER machine (Some GPU, " in line for line in doctor.report(["pocket"]))


def test_the_doctor_does_not_believe_damaged_results(outputs):
    folder = measured(decode=20.0)
    (folder / "metrics.json").write_text("[{")
    assert any("nothing was measured here yet" in line for line in doctor.report(["pocket"]))
