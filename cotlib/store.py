"""Files that are whole or absent: atomic writes, digests, append-only ledgers, one writer at a time.

Known trade-offs, accepted: `os.replace` swaps one file, not a folder, which is why every folder has a
manifest written last; on a network file system without fsync a power cut may still lose the newest write.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptError(f"{path} is not readable JSON ({error}); delete it and run again") from error


class Ledger:
    """One JSON line per finished unit, flushed and fsynced, so that a killed run loses at most one unit.

    The first line holds the key of what makes the units. A last line without its newline is a torn write:
    it is dropped on reading and cut off before the next append. A bad line elsewhere is CorruptError.
    A record is found again by its "prompt"; the newest of several wins.
    """

    def __init__(self, path: Path, key: str, what: dict[str, Any] | None = None) -> None:
        """Open or plan the ledger; the file appears with the first record.

        Raises ForeignError if the file has another key, CorruptError if it cannot be read.
        """
        self.path, self.key, self.what = Path(path), key, what or {}
        self._records: list[dict[str, Any]] = []
        self._by_prompt: dict[str, dict[str, Any]] = {}
        self._whole_bytes = 0  # length of the file up to its last whole line
        if self.path.exists():
            self._read()

    @classmethod
    def existing(cls, path: Path) -> Ledger:
        """A ledger to read, whatever its key; FileNotFoundError if there is none."""
        first = next(_whole_lines(Path(path).read_bytes()), (1, b"{}", 0))[1]
        header = cls._parse_line(path, 1, first)
        return cls(path, header.get("ledger", ""), header.get("what"))

    def _read(self) -> None:
        for number, line, end in _whole_lines(self.path.read_bytes()):
            record = self._parse_line(self.path, number, line)
            if number == 1:
                self._check_header(record)
            else:
                self._remember(record)
            self._whole_bytes = end

    @staticmethod
    def _parse_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            record = error
        if not isinstance(record, dict):
            raise CorruptError(
                f"{path}, line {number}: expected one JSON object, got {line[:60]!r}; "
                f"delete that line to keep the others, or the file to start it again"
            )
        return record

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
        """Store one finished unit; on return it has reached the disk."""
        lines = canonical(record) + "\n"
        if self._whole_bytes == 0:
            lines = canonical({"ledger": self.key, "what": self.what}) + "\n" + lines
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = lines.encode()
        with open(self.path, "r+b" if self.path.exists() else "xb") as file:
            file.truncate(self._whole_bytes)
            file.seek(self._whole_bytes)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._whole_bytes += len(data)
        self._remember(json.loads(canonical(record)))  # what a later reader will see: lists for tuples, text keys

    def records(self) -> Iterator[dict[str, Any]]:
        """The records in the order they were appended."""
        return iter(self._records)

    def get(self, prompt: str) -> dict[str, Any] | None:
        """The newest record with this "prompt", or None."""
        return self._by_prompt.get(prompt)

    def __contains__(self, prompt: object) -> bool:
        return prompt in self._by_prompt

    def __len__(self) -> int:
        return len(self._records)


def _whole_lines(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(number from 1, line without newline, offset just after it) of every line that has its newline."""
    start = 0
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        start += len(line) + 1
        yield number, line, start


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold `folder`/.lock, or CotlibError naming the process that holds it. A lock of a dead process is taken over."""
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = canonical({"pid": os.getpid(), "host": socket.gethostname()})
    try:
        _create(path, mine)
    except FileExistsError:
        holder = _holder(path)
        if not _is_dead(holder):
            raise CotlibError(
                f"{folder} is being written by process {holder.get('pid')} on {holder.get('host')}; "
                f"wait for it, or if it is gone: rm {path}"
            ) from None
        path.unlink(missing_ok=True)
        _create(path, mine)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _create(path: Path, text: str) -> None:
    with open(path, "x") as file:  # "x" fails if another process was first
        file.write(text)


def _holder(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """True only for a process of this machine that certainly no longer runs."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
