"""Files that are whole or absent: atomic writes, digests, append-only ledgers, quarantine, one writer at a time.

Known trade-offs, accepted: `os.replace` swaps one file, not a folder, which is why every folder has a
manifest written last; on a network file system without fsync a power cut may still lose the newest write.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from cotlib.errors import CorruptError, CotlibError, ForeignError


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN is refused with ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """Lists and numbers for arrays, tensors and their scalars; TypeError for anything else."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot store {value!r} ({type(value).__name__}); use numbers, text, lists and dicts")


def digest(value: Any) -> str:
    """sha256 (64 hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sha256(path: Path) -> str:
    """sha256 (64 hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, data: bytes | str) -> Path:
    """Write a whole file: temporary file beside it, fsync, rename. The old content stays until the rename.

    Text is stored as UTF-8 with its newlines as they are, so that a digest is the same on every system.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives 0600, which a batch user's colleagues cannot read
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C too must leave no litter
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return path


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def dump_json(value: Any) -> str:
    """Indented JSON for people to read too; NaN and infinities are refused with ValueError."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False, default=_plain) + "\n"


def write_json(path: Path, value: Any) -> Path:
    """`dump_json`, written atomically."""
    return atomic_write(path, dump_json(value))


def read_json(path: Path) -> Any:
    """The content of a JSON file, or CorruptError naming it."""
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:  # no JSON, or no UTF-8
        raise CorruptError(
            f"{path} is not readable JSON ({error}); the next `cotlib run` sets it aside as {Path(path).name}.corrupt"
        ) from error


class Ledger:
    """One JSON line per finished unit, flushed and fsynced, so that a killed run loses at most one unit.

    The first line holds the key of what makes the units. Every line ends with a digest of itself, so that one changed
    bit is noticed and the other lines can still be trusted. A last line without its newline is a torn write: it is
    dropped on reading and cut off before the next append. Several processes of one machine may append in turn.
    A record is found again by its "prompt"; the newest of several wins.
    """

    def __init__(self, path: Path, key: str, what: dict[str, Any] | None = None, mend: bool = False) -> None:
        """Open or plan the ledger; the file appears with the first record.

        Raises ForeignError if the file has another key, CorruptError for a line that is not as it was written.
        mend: set such a file aside as *.corrupt instead, and go on with its good lines.
        """
        self.path, self.key, self.what = Path(path), key, what or {}
        self.notes: list[str] = []  # what a reader of the results should know: mended, decoded in smaller batches
        self._forget()
        if self.path.exists():
            data = self.path.read_bytes()
            try:
                self._take_in(data)
            except CorruptError as error:
                if not mend:
                    raise
                self._mend(data, error)

    def _forget(self) -> None:
        self._records: list[dict[str, Any]] = []
        self._by_prompt: dict[str, dict[str, Any]] = {}
        self._n_lines, self._whole_bytes = 0, 0  # of the file up to its last whole line

    @classmethod
    def existing(cls, path: Path) -> Ledger:
        """A ledger to read, whatever its key; FileNotFoundError if there is none, CorruptError if it is damaged."""
        header = header_of(path)
        return cls(path, header.get("ledger", ""), header.get("what"))

    def _take_in(self, data: bytes) -> None:
        """Remember the whole lines of `data`, which is the file from `_whole_bytes` on."""
        *lines, torn = data.split(b"\n")
        for line in lines:
            record = _unsealed(self.path, self._n_lines + 1, line)
            if self._n_lines == 0:
                self._check_header(record)
            else:
                self._remember(record)
            self._n_lines += 1
            self._whole_bytes += len(line) + 1
        if torn and not torn.startswith(b"{"):
            raise _corrupt_line(self.path, self._n_lines + 1, torn)

    def _mend(self, data: bytes, error: CorruptError) -> None:
        """Set the file aside and start it again with those lines that prove themselves, if the first is among them."""
        lines = data.split(b"\n")[:-1]
        is_headed = bool(lines) and _is_sealed(lines[0]) and b'"ledger":' in lines[0]
        good = [line for line in lines if _is_sealed(line)] if is_headed else []
        self._forget()
        self._take_in(b"".join(line + b"\n" for line in good))  # ForeignError leaves the file where it is
        aside = quarantine(self.path)
        if good:
            atomic_write(self.path, b"".join(line + b"\n" for line in good))
        self.notes.append(f"{error}; set aside as {aside.name}, {len(self)} good records kept, the others made again")
        print(self.notes[-1], flush=True)

    def _check_header(self, header: dict[str, Any]) -> None:
        found = header.get("ledger")
        if found is None:
            raise CorruptError(f"{self.path}, line 1: no ledger header; delete the file to start it again")
        if found != self.key:
            theirs = header.get("what", {})
            changed = sorted(k for k in {*theirs, *self.what} if theirs.get(k) != self.what.get(k))
            detail = "; ".join(f"{k}: {theirs.get(k)!r} there, {self.what.get(k)!r} here" for k in changed)
            raise ForeignError(
                f"{self.path} was made with key {found}, this run has {self.key} ({detail or 'no field differs'}). "
                f"Keep both with COTLIB_OUTPUTS=another-folder, or start again with: rm {self.path}"
            )

    def _remember(self, record: dict[str, Any]) -> None:
        self._records.append(record)
        if "prompt" in record:
            self._by_prompt[record["prompt"]] = record

    def append(self, record: dict[str, Any]) -> None:
        """Store one finished unit; on return it has reached the disk.

        CorruptError if the file was cut short or deleted since it was opened.
        """
        self._write([json.loads(canonical(record))])  # what a later reader will see: lists for tuples, text keys

    def take_over(self, records: Mapping[str, dict[str, Any]]) -> None:
        """Store those records, by prompt, that are missing here, in the order of their prompts."""
        if any(prompt not in self for prompt in records):
            self._write([records[prompt] for prompt in sorted(records)], only_missing=True)

    def _write(self, records: Sequence[dict[str, Any]], only_missing: bool = False) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file, _alone(self.path):
            self._catch_up(file)
            kept = [r for r in records if r["prompt"] not in self] if only_missing else records
            header = b"" if self._n_lines else _sealed({"ledger": self.key, "what": self.what}) + b"\n"
            file.truncate(self._whole_bytes)
            file.write(header + b"".join(_sealed(record) + b"\n" for record in kept))
            file.flush()
            os.fsync(file.fileno())
            self._catch_up(file)

    def _catch_up(self, file: BinaryIO) -> None:
        size = file.seek(0, os.SEEK_END)
        if size < self._whole_bytes:
            raise CorruptError(
                f"{self.path} has {size} bytes, expected at least {self._whole_bytes}: it was cut or deleted while "
                f"this run had it open; type the same command again"
            )
        file.seek(self._whole_bytes)
        self._take_in(file.read())

    def records(self) -> Iterator[dict[str, Any]]:
        """The records in the order they were appended."""
        return iter(self._records)

    def get(self, prompt: str) -> dict[str, Any] | None:
        """The newest record with this "prompt", or None."""
        return self._by_prompt.get(prompt)

    def by_prompt(self) -> dict[str, dict[str, Any]]:
        """The newest record of each prompt."""
        return dict(self._by_prompt)

    def borrow(self, records: Mapping[str, dict[str, Any]]) -> None:
        """Answer for these prompts too, without storing their records here."""
        self._by_prompt = {**records, **self._by_prompt}

    def __contains__(self, prompt: object) -> bool:
        return prompt in self._by_prompt

    def __len__(self) -> int:
        return len(self._records)


def header_of(path: Path) -> dict[str, Any]:
    """A ledger's first line, {"ledger": key, "what": identity}; {} if it was torn in writing.

    Raises CorruptError if it is not as it was written.
    """
    with open(path, "rb") as file:
        first = file.readline()
    return _unsealed(path, 1, first[:-1]) if first.endswith(b"\n") else {}


def shard_path(path: Path, index: int, count: int) -> Path:
    """Where process `index` of `count` (1 the first) keeps its part of a ledger, until somebody takes it over."""
    return path.with_name(f"{path.stem}.shard-{index}-of-{count}{path.suffix}")


def shard_paths(path: Path) -> list[Path]:
    """The shards there are of a ledger, of whatever number of processes."""
    return sorted(path.parent.glob(f"{path.stem}.shard-*-of-*{path.suffix}"))


SEAL = len(',"sha":"0123456789abcdef"}')


def _sealed(record: dict[str, Any]) -> bytes:
    """The record's line without newline: its JSON with one more field, "sha", over all that stands before it."""
    body = canonical(record)[:-1].encode()
    return body + f',"sha":"{hashlib.sha256(body).hexdigest()[:16]}"}}'.encode()


def _is_sealed(line: bytes) -> bool:
    body = line[:-SEAL]
    return line[-SEAL:] == f',"sha":"{hashlib.sha256(body).hexdigest()[:16]}"}}'.encode()


def _unsealed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """The record of a line, without its seal; CorruptError if a byte of it has changed."""
    if not _is_sealed(line):
        raise _corrupt_line(path, number, line)
    return json.loads(line[:-SEAL] + b"}")


def _corrupt_line(path: Path, number: int, line: bytes) -> CorruptError:
    return CorruptError(
        f"{path}, line {number}: expected a JSON object that ends with its own digest, got {line[:60]!r}; "
        f"the next `cotlib run` sets the file aside as {Path(path).name}.corrupt and keeps the good lines"
    )


# ---- quarantine -----------------------------------------------------------------------------------------------


def quarantine(path: Path, label: str = "corrupt") -> Path:
    """Move a file that is not to be used to the first free of `name`.corrupt, `name`.corrupt-2, ...; where it is now.

    label: what to say instead of "corrupt".
    """
    aside, number = path.with_name(f"{path.name}.{label}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{label}-{number}")
    os.rename(path, aside)
    return aside


def is_quarantined(path: Path) -> bool:
    """Whether `quarantine` put it there as corrupt."""
    return path.suffix.startswith(".corrupt")


def sweep(folder: Path, older_than: float = 60.0) -> None:
    """Delete the temporary files that killed writers left below `folder`; seconds spare those in use now."""
    for path in Path(folder).rglob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > older_than:
                path.unlink()


# ---- one writer -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold `folder`/.lock, or CotlibError naming the process that holds it. A lock of a dead process is taken over."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, mine = folder / ".lock", {"pid": os.getpid(), "host": socket.gethostname(), "born": _born(os.getpid())}
    with _alone(folder):  # of two that find a dead lock, the second waits here and then finds a live one
        if path.exists():
            _take_over(path)
        with open(path, "x") as file:  # "x": a process of another host may have been first
            file.write(canonical(mine))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take_over(path: Path) -> None:
    """Remove the lock of a dead process, or CotlibError."""
    try:
        text = path.read_text()
        holder = dict(json.loads(text))
    except FileNotFoundError:  # freed since
        return
    except (ValueError, TypeError):
        holder = {}
    if text and not _is_dead(holder):  # an empty one: killed between creating and writing it
        raise CotlibError(
            f"{path.parent} is being written by process {holder.get('pid')} on {holder.get('host')}; "
            f"wait for it, or if it is gone: rm {path}"
        )
    path.unlink(missing_ok=True)
    if text and _born(os.getpid()) is None:
        time.sleep(3)  # without /proc we are not on Linux, where the dead chain's kernel would have ended with it


def _is_dead(holder: dict[str, Any]) -> bool:
    """True only for a process of this machine that certainly no longer runs, even if its number is in use again."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    if _born(os.getpid()) is not None and "born" in holder:
        return _born(holder["pid"]) != holder["born"]
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _born(pid: int) -> str | None:
    """When a process started, in ticks since boot; None if it is gone or a zombie, or if there is no /proc to ask."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


CANNOT_LOCK = (errno.EBADF, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what network file systems answer


@contextlib.contextmanager
def unshared(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, which ends with the process, or CotlibError if another process makes `what`, in words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_alone(path, wait=False))
        except BlockingIOError:
            raise CotlibError(
                f"{what} is being made by another process, which holds {path}; wait for it, then type the same again"
            ) from None
        yield


@contextlib.contextmanager
def _alone(path: Path, wait: bool = True) -> Iterator[None]:
    """Wait until no other process holds this file or folder, then hold it. Ends with the process.

    wait: else BlockingIOError if another one does.

    Of this machine, or of all if the file system locks for all; on one that cannot lock there is nothing to wait with.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing to wait with
        yield
        return
    handle = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)  # NFS locks what is open for writing
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                raise
        yield
    finally:
        os.close(handle)
