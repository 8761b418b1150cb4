"""Removing, counting and sweeping folders that something hostile filled."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.needs import need_root
from workers.jobs.scratch import scratch_folder, sweep
from workers.limits import Limits
from workers.trees import remove_tree

LIMITS = Limits(memory_bytes=2**30, scratch_bytes=2**20, seconds=1)
NOBODY = 65534


def nest(folder: Path, *, depth: int, name: str = "a") -> None:
    """Nest folders one in another, with a file at the bottom; no path is needed for it."""
    inside = os.open(folder, os.O_PATH)
    for _ in range(depth):
        os.mkdir(name, dir_fd=inside)
        deeper = os.open(name, os.O_PATH, dir_fd=inside)
        os.close(inside)
        inside = deeper
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=inside))
    os.close(inside)


def as_nobody(action: Callable[[], None], *, inside: Path) -> bool:
    """Do something in a child without privileges, which modes can keep out; return whether all went well.

    The child works inside a folder by relative paths: the folders above it stay closed.
    """
    child = os.fork()
    if child == 0:
        try:
            os.chdir(inside)
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            action()
        except BaseException:  # noqa: BLE001 - the child must never go on as a second test run
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def open_to_all(tmp_path: Path) -> Path:
    """Return a folder inside which a child without privileges may work."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.mark.parametrize("name", ["a", "n" * 255])
def test_a_tree_nested_without_end_is_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / "tree").mkdir()
    nest(tmp_path / "tree", depth=1600, name=name)
    remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "tree" / "inner" / "link").symlink_to(tmp_path / "precious")
    remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.rglob("*")] == ["precious", "file"]


def test_a_link_in_the_place_of_the_tree_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "tree").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="tree"):
        remove_tree(tmp_path / "tree")
    assert (tmp_path / "precious").exists()


def test_removing_what_is_not_there_is_quiet(tmp_path: Path) -> None:
    remove_tree(tmp_path / "missing")


@pytest.mark.parametrize("mode", [0o300, 0o100, 0o000])
def test_a_folder_that_keeps_its_owner_out_is_removed(open_to_all: Path, mode: int) -> None:
    def fill_and_remove() -> None:
        inner = Path("tree", "outer", "inner")
        inner.mkdir(parents=True)
        (inner / "file").touch()
        inner.chmod(mode)
        inner.parent.chmod(mode)
        remove_tree(Path("tree"))

    assert as_nobody(fill_and_remove, inside=open_to_all)
    assert list(open_to_all.iterdir()) == []


def test_an_attempt_leaves_nothing_whatever_its_stage_left(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, job="j") as scratch:
        nest(scratch, depth=1600)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_removes_a_tree_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / "dead-1").mkdir()
    nest(tmp_path / "dead-1", depth=1600)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_goes_on_past_a_folder_it_cannot_remove(open_to_all: Path) -> None:
    need_root()
    (open_to_all / "another's").mkdir()
    (open_to_all / "dead-1").mkdir()
    os.chown(open_to_all / "dead-1", NOBODY, NOBODY)
    assert as_nobody(lambda: sweep(Path()), inside=open_to_all)
    assert [path.name for path in open_to_all.iterdir()] == ["another's"]


def test_a_stage_that_nests_too_deep_breaks_a_limit(tmp_path: Path) -> None:
    nest(tmp_path, depth=64)
    assert LIMITS.broken_on_disk(tmp_path) is None
    nest(tmp_path, depth=65, name="b")
    assert "nested more than 64" in str(LIMITS.broken_on_disk(tmp_path))


def test_paths_too_long_to_look_into_break_a_limit(tmp_path: Path) -> None:
    nest(tmp_path, depth=30, name="n" * 255)
    assert "cannot be looked into" in str(LIMITS.broken_on_disk(tmp_path))


def test_a_folder_that_cannot_be_listed_breaks_a_limit(open_to_all: Path) -> None:
    def fill_and_look() -> None:
        Path("closed").mkdir(mode=0o300)
        assert "cannot be looked into" in str(LIMITS.broken_on_disk(Path()))

    assert as_nobody(fill_and_look, inside=open_to_all)
