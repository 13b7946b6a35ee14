import contextlib
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from cotlib.errors import CorruptError, CotlibError, ForeignError
from cotlib.store import Ledger, atomic_write, digest, one_writer, read_json, sha256, write_json


class TestAtomicWrite:
    def test_content_arrives_and_folders_are_made(self, tmp_path):
        path = atomic_write(tmp_path / "a" / "b.txt", "é\n")
        assert path.read_bytes() == "é\n".encode()

    def test_failure_leaves_the_old_file_and_no_litter(self, tmp_path, monkeypatch):
        path = atomic_write(tmp_path / "x", b"old")
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            atomic_write(path, b"new")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["x"]

    def test_interruption_leaves_the_old_file_and_no_litter(self, tmp_path, monkeypatch):
        path = atomic_write(tmp_path / "x", b"old")

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            atomic_write(path, b"new")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["x"]

    def test_a_name_of_200_characters_is_written(self, tmp_path):
        assert atomic_write(tmp_path / ("n" * 200), b"1").exists()

    def test_others_may_read_it(self, tmp_path):
        umask = os.umask(0o022)
        try:
            assert atomic_write(tmp_path / "x", b"1").stat().st_mode & 0o777 == 0o644
        finally:
            os.umask(umask)


def test_digest_ignores_the_order_of_keys_and_nothing_else():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2}) != digest({"a": "2"})


def test_nan_is_refused_instead_of_written_as_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_unreadable_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(CorruptError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_sha256_is_the_one_that_sha256sum_prints(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class TestLedger:
    def test_records_survive_reopening_in_order(self, tmp_path):
        ledger = Ledger(tmp_path / "l.jsonl", "k")
        ledger.append({"prompt": "00000", "codes": [1]})
        ledger.append({"prompt": "00001", "codes": [2]})
        again = Ledger(tmp_path / "l.jsonl", "k")
        assert [r["prompt"] for r in again.records()] == ["00000", "00001"]
        assert "00001" in again and "00002" not in again and len(again) == 2
        assert again.get("00000")["codes"] == [1] and again.get("00002") is None

    def test_the_newest_record_of_a_prompt_wins(self, tmp_path):
        ledger = Ledger(tmp_path / "l.jsonl", "k")
        for n in (4, 20):
            ledger.append({"prompt": "p", "n": n})
        assert ledger.get("p")["n"] == Ledger(tmp_path / "l.jsonl", "k").get("p")["n"] == 20

    def test_nothing_is_written_before_the_first_record(self, tmp_path):
        Ledger(tmp_path / "l.jsonl", "k")
        assert not (tmp_path / "l.jsonl").exists()

    @pytest.mark.parametrize("lost", [1, 5, 20])
    def test_a_torn_last_line_is_dropped_and_cut_off_by_the_next_append(self, tmp_path, lost):
        path = tmp_path / "l.jsonl"
        ledger = Ledger(path, "k")
        ledger.append({"prompt": "a", "x": "0123456789" * 3})
        ledger.append({"prompt": "b", "x": "0123456789" * 3})
        path.write_bytes(path.read_bytes()[:-lost])
        torn = Ledger(path, "k")
        assert "a" in torn and "b" not in torn
        torn.append({"prompt": "c"})
        assert [b'{"prompt":"c"' in line for line in path.read_bytes().split(b"\n")] == [False, False, True, False]
        assert [r["prompt"] for r in Ledger(path, "k").records()] == ["a", "c"]

    def test_a_torn_header_starts_the_file_again(self, tmp_path):
        path = tmp_path / "l.jsonl"
        path.write_bytes(b'{"ledg')
        Ledger(path, "k").append({"prompt": "a"})
        assert "a" in Ledger(path, "k")

    @pytest.mark.parametrize("bad", [b"nonsense", b"[1, 2]", b"\xff\xfe", b""])
    def test_a_bad_line_in_the_middle_is_reported_with_its_number(self, tmp_path, bad):
        path = tmp_path / "l.jsonl"
        ledger = Ledger(path, "k")
        for name in "abc":
            ledger.append({"prompt": name})
        lines = path.read_bytes().split(b"\n")
        lines[2] = bad
        path.write_bytes(b"\n".join(lines))
        before = path.read_bytes()
        with pytest.raises(CorruptError, match=r"l\.jsonl, line 3"):
            Ledger(path, "k")
        assert path.read_bytes() == before

    def test_a_ledger_of_another_key_is_refused_and_the_difference_is_named(self, tmp_path):
        Ledger(tmp_path / "l.jsonl", "k1", {"steps": 8}).append({"prompt": "a"})
        with pytest.raises(ForeignError, match="k1.*k2.*steps: 8 there, 18 here.*COTLIB_OUTPUTS.*rm "):
            Ledger(tmp_path / "l.jsonl", "k2", {"steps": 18})

    def test_arrays_are_stored_as_lists_and_read_back_equal_to_what_memory_holds(self, tmp_path):
        ledger = Ledger(tmp_path / "l.jsonl", "k")
        ledger.append({"prompt": "a", "codes": np.arange(3), "score": np.float32(0.5)})
        assert (
            ledger.get("a")
            == Ledger(tmp_path / "l.jsonl", "k").get("a")
            == {"prompt": "a", "codes": [0, 1, 2], "score": 0.5}
        )

    def test_a_record_that_cannot_be_stored_leaves_the_file_as_it_was(self, tmp_path):
        ledger = Ledger(tmp_path / "l.jsonl", "k")
        ledger.append({"prompt": "a"})
        before = ledger.path.read_bytes()
        with pytest.raises(TypeError, match="cannot store"):
            ledger.append({"prompt": "b", "x": object()})
        with pytest.raises(ValueError, match="JSON"):
            ledger.append({"prompt": "b", "x": float("nan")})
        assert ledger.path.read_bytes() == before and "b" not in ledger

    def test_an_existing_ledger_can_be_read_without_knowing_its_key(self, tmp_path):
        Ledger(tmp_path / "l.jsonl", "k", {"steps": 8}).append({"prompt": "a"})
        found = Ledger.existing(tmp_path / "l.jsonl")
        assert (found.key, found.what, "a" in found) == ("k", {"steps": 8}, True)

    def test_taking_over_adds_what_is_missing_in_the_order_of_prompts_and_nothing_twice(self, tmp_path):
        ledger = Ledger(tmp_path / "l.jsonl", "k")
        ledger.append({"prompt": "b", "x": 1})
        ledger.take_over({name: {"prompt": name, "x": 2} for name in "cba"})
        again = Ledger(tmp_path / "l.jsonl", "k")
        assert [(r["prompt"], r["x"]) for r in again.records()] == [("b", 1), ("a", 2), ("c", 2)]
        before = ledger.path.read_bytes()
        ledger.take_over(again.by_prompt())
        stale = Ledger(tmp_path / "l.jsonl", "k")
        ledger.append({"prompt": "d"})
        stale.take_over({"d": {"prompt": "d"}})  # it did not know yet
        assert ledger.path.read_bytes().startswith(before) and ledger.path.read_bytes().count(b"\n") == 5

    def test_nothing_to_take_over_makes_no_file(self, tmp_path):
        Ledger(tmp_path / "l.jsonl", "k").take_over({})
        assert not (tmp_path / "l.jsonl").exists()

    def test_what_is_borrowed_is_answered_for_but_not_stored(self, tmp_path):
        ledger = Ledger(tmp_path / "l.jsonl", "k")
        ledger.append({"prompt": "a", "x": 1})
        ledger.borrow({"a": {"prompt": "a", "x": 2}, "b": {"prompt": "b", "x": 2}})
        assert "b" in ledger and ledger.get("a")["x"] == 1
        assert "b" not in Ledger(tmp_path / "l.jsonl", "k")

    @pytest.mark.parametrize(("code", "is_refused"), [(errno.ENOSYS, False), (errno.EBADF, False), (errno.EINTR, True)])
    def test_a_file_system_that_cannot_lock_is_written_all_the_same(self, tmp_path, monkeypatch, code, is_refused):
        fcntl = pytest.importorskip("fcntl")

        def flock(*_):
            raise OSError(code, "no")

        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(OSError, match="no") if is_refused else contextlib.nullcontext():
            Ledger(tmp_path / "l.jsonl", "k").append({"prompt": "a"})
        assert ("a" in Ledger(tmp_path / "l.jsonl", "k")) != is_refused

    def test_a_lock_is_asked_for_on_a_file_open_for_writing(self, tmp_path, monkeypatch):
        """As NFS wants it."""
        fcntl, modes = pytest.importorskip("fcntl"), []
        monkeypatch.setattr(fcntl, "flock", lambda file, _: modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_RDWR))
        Ledger(tmp_path / "l.jsonl", "k").append({"prompt": "a"})
        assert modes == [os.O_RDWR]

    def test_a_process_killed_while_appending_loses_at_most_one_record(self, tmp_path):
        script = (
            "import itertools, sys; from cotlib.store import Ledger\n"
            "ledger = Ledger(sys.argv[1], 'k')\n"
            "for i in itertools.count():\n"
            "    ledger.append({'prompt': str(i), 'x': 'y' * 500}); print(i, flush=True)\n"
        )
        path = tmp_path / "l.jsonl"
        writer = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True)
        for line in writer.stdout:
            if int(line) == 20:
                break
        writer.kill()
        promised = [int(line) for line in writer.communicate()[0].split()] or [20]
        assert len(Ledger(path, "k")) in (promised[-1] + 1, promised[-1] + 2)


class TestOneWriter:
    def test_a_second_writer_is_told_who_holds_the_folder(self, tmp_path):
        with (
            one_writer(tmp_path),
            pytest.raises(CotlibError, match=f"process {os.getpid()} on .*rm "),
            one_writer(tmp_path),
        ):
            pass
        assert not (tmp_path / ".lock").exists()

    def test_the_lock_of_a_dead_process_is_taken_over(self, tmp_path):
        dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
        with one_writer(tmp_path):
            holder = json.loads((tmp_path / ".lock").read_text())
        (tmp_path / ".lock").write_text(json.dumps({**holder, "pid": int(dead.stdout)}))
        with one_writer(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()

    def test_the_lock_of_another_host_is_respected(self, tmp_path):
        (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
        with pytest.raises(CotlibError, match="elsewhere"), one_writer(tmp_path):
            pass
        assert (tmp_path / ".lock").exists()
