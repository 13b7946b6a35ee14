"""Weights of a scale, from the hub to this machine: known whole in advance, resumed, and found offline afterwards.

They go where `hub` looks for them: into the folder PART/ of `$COTLIB_WEIGHTS` if that is set, else into the hub's
cache. The first fetch takes the newest revision of each repository, or the one that its name in `hub` gives after "@",
and writes down which that was; later ones keep to it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

from . import hub
from .config import PARTS, Scale, suggest
from .errors import CorruptError, CotlibError, ForeignError, IncompleteError
from .provenance import WEIGHTS as FOLDER
from .provenance import weights_root

GB = 1e9
POCKET_PARTS = ("tokenizer", "detector", "generator", "judge")


@dataclass(frozen=True)
class Wanted:
    """One part of a scale as the hub has it."""

    part: str
    repository: str
    revision: str  # commit, 40 hex
    sizes: dict[str, int]  # bytes by file name
    local: Path | None  # folder it goes to; None: the hub's cache

    def path(self, name: str) -> Path | None:
        """Where a file lies if it is there, whole or not."""
        if self.local:
            return self.local / name if (self.local / name).is_file() else None
        found = try_to_load_from_cache(self.repository, name, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def missing(self) -> dict[str, int]:
        """Bytes of the files that are not there whole."""
        places = {name: self.path(name) for name in self.sizes}
        return {
            name: size
            for name, size in self.sizes.items()
            if not (places[name] and places[name].stat().st_size == size)
        }


def fetch(scale: Scale, parts: Sequence[str] = ()) -> None:
    """Bring the weights of a scale, or some parts, onto this machine; what is there is kept.

    Every size is known and compared with the free disk before the first byte. Raises ValueError for an unknown part;
    IncompleteError for what neither is here nor can be had, with where to put it; ForeignError for a folder that holds
    another scale's part; CotlibError where the disk is too small.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"unknown part {part!r}; {suggest(part, PARTS)}")
    if scale.offline:
        from .loaders import weights_folder

        for part in POCKET_PARTS:
            weights_folder(scale, part)
        print(f"scale {scale.name!r} ships with cotlib: nothing to fetch")
        return
    wanted = _ask(scale, parts or PARTS)
    _check_disk(wanted)
    for one in wanted:
        _download(one)
    print(f"all there; no network is needed from now on. See them with: cotlib doctor --scale {scale.name}")


# --- What the hub has ---------------------------------------------------------------------------------------------


def _ask(scale: Scale, parts: Sequence[str]) -> list[Wanted]:
    """What the hub says of each part; one put into its folder by hand is left out, it is nobody's to change."""
    wanted, failed = [], {}
    for part in parts:
        if _is_by_hand(scale, part):
            print(f"{part}: there, in {hub.folder_of(scale, part, download=False)}")
            continue
        try:
            wanted.append(_ask_for(scale, part))
        except CotlibError:
            raise
        except Exception as error:  # no network, offline, no such name, no access: many classes, one meaning
            failed[part] = error
    if failed:
        _without_network(scale, failed)
    return wanted


def _ask_for(scale: Scale, part: str) -> Wanted:
    repository, _, pinned = hub.published(scale, part).partition("@")
    revision = pinned or hub.fetched_revision(repository) or "main"
    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    patterns = hub.patterns_of(part)
    sizes = {
        file.rfilename: file.size or 0
        for file in info.siblings
        if any(fnmatch(file.rfilename, pattern) for pattern in patterns)
    }
    if part != "text-tokenizer" and not any(name.endswith(".safetensors") for name in sizes):
        raise IncompleteError(
            f"{repository} at {info.sha} has no .safetensors: pickled weights are never loaded; convert them "
            f"elsewhere, put them into FOLDER/{part} and export {FOLDER}=FOLDER"
        )
    root = weights_root()
    return Wanted(part, repository, info.sha, sizes, root / part if root else None)


def _is_by_hand(scale: Scale, part: str) -> bool:
    """Whether the part's folder holds it though nothing was fetched into it. ForeignError if another was."""
    root = weights_root()
    if not root:
        return False
    repository = hub.published(scale, part).partition("@")[0]
    known = {entry["part"]: name for name, entry in hub.fetched().items()}
    if known.get(part, repository) != repository:
        raise ForeignError(
            f"{root / part} holds {known[part]}, scale {scale.name!r} wants {repository}; keep both with "
            f"{FOLDER}=another-folder"
        )
    if part in known:
        return False
    try:
        hub.folder_of(scale, part, download=False)
    except IncompleteError:
        return False
    return True


def _without_network(scale: Scale, failed: dict[str, Exception]) -> None:
    """Say what is there; IncompleteError naming what is not, and where it belongs."""
    missing = {}
    for part, error in failed.items():
        try:
            print(f"{part}: there, in {check_whole(scale, part)}, though the hub did not answer")
        except CotlibError:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            missing[part] = f"  {part}: {hub.published(scale, part)} ({why})"
    if missing:
        root, names = weights_root() or "FOLDER", " ".join(f"--part {part}" for part in missing)
        lines = [
            f"scale {scale.name!r} lacks {len(missing)} of its weights, and the hub did not give them:",
            *missing.values(),
            f"Where there is a network: {FOLDER}=FOLDER cotlib fetch --scale {scale.name} {names}",
            f"Carry FOLDER here{f' as {root}' if root != 'FOLDER' else ''} and: export {FOLDER}={root}",
        ]
        raise IncompleteError("\n".join(lines))


def check_whole(scale: Scale, part: str) -> Path:
    """Folder of a part that is on this machine, asking no network; every file that was fetched is there in its size.

    Raises IncompleteError if it is not here, CorruptError naming a file that is cut short or lost.
    """
    folder = hub.folder_of(scale, part, download=False)
    entry = hub.fetched().get(hub.published(scale, part).partition("@")[0], {})
    is_fetched = entry and (folder == hub.place() / part or folder.name == entry["revision"])
    for name, size in entry["files"].items() if is_fetched else ():
        there = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if there != size:
            again = f"cotlib fetch --scale {scale.name} --part {part}"
            raise CorruptError(f"{folder / name} has {there} of {size} bytes; go on with: {again}")
    return folder


# --- Bytes --------------------------------------------------------------------------------------------------------


def free_disk(folder: Path) -> int:
    """Free bytes where a folder is, or will be."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(nearest).free


def _check_disk(wanted: Iterable[Wanted]) -> None:
    needed = 0
    for one in wanted:
        missing = sum(one.missing().values())
        needed += missing
        whole = sum(one.sizes.values())
        print(f"{one.part}: {one.repository} at {one.revision[:12]}, {whole / GB:.2f} GB, {missing / GB:.2f} to fetch")
    if needed > (free := free_disk(hub.place())):
        raise CotlibError(
            f"{hub.place()}: {needed / GB:.2f} GB to fetch, {free / GB:.2f} GB free; make room, or choose another "
            f"place with export {FOLDER}=another-folder"
        )


def _download(one: Wanted) -> None:
    """Fetch what is missing and remember its revision: before, so that a resumed fetch takes the same files."""
    hub.remember(one.repository, {"part": one.part, "revision": one.revision, "files": one.sizes})
    if missing := one.missing():
        for path in filter(None, map(one.path, missing)):  # of the wrong size: the hub's client takes it as it is
            if one.local is None:  # in the hub's cache a name is a link to what arrived
                path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        snapshot_download(
            one.repository, revision=one.revision, allow_patterns=list(hub.patterns_of(one.part)), local_dir=one.local
        )
    for name, size in one.missing().items():
        raise CorruptError(f"{one.repository}: {name} did not arrive in its {size} bytes; type the same command again")
    print(f"{one.part}: there", flush=True)
