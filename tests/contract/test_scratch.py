"""Scratch folders of attempts."""

import os
from pathlib import Path

from workers.jobs.scratch import scratch_folder, sweep


def test_two_attempts_at_one_job_have_a_folder_each(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, job="j") as first, scratch_folder(tmp_path, job="j") as second:
        (first / "file").write_text("mine")
        assert first != second
        assert list(second.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_only_this_user_may_enter(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, job="j") as folder:
        assert {folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777} == {0o700}


def test_a_sweep_removes_what_nobody_holds_and_leaves_what_somebody_does(tmp_path: Path) -> None:
    (tmp_path / "dead-1").mkdir()
    (tmp_path / "dead-1" / "lock").touch()
    with scratch_folder(tmp_path, job="alive") as folder:
        child = os.fork()  # another process: a lock does not exclude the one that holds it
        if child == 0:
            sweep(tmp_path)
            os._exit(0)
        os.waitpid(child, 0)
        assert folder.exists()
        assert not (tmp_path / "dead-1").exists()


def test_a_sweep_of_nothing_is_quiet(tmp_path: Path) -> None:
    sweep(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
