"""Checkpoints on the disk: how many are kept, what happens to a damaged one, and who may write beside."""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from tests.train.interrupted import rows, same_tensors, train
from tests.train.tiny import tiny_settings
from vssm import _writing
from vssm.inference.checkpoint import read_checkpoint
from vssm.inference.run_dir import RunDir
from vssm.train.checkpoint_files import AtomicCheckpointIO, checkpoint_to_resume
from vssm.train.fit import build, fit
from vssm.weights.archive import check_intact
from vssm.weights.errors import CheckpointError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run, *found = train(tmp_path_factory.mktemp("runs") / "whole", tiny_settings(save_every_n_steps=1))
    return run, *found


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole[0].path, tmp_path / "run")
    return RunDir(tmp_path / "run")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def step_of(file):
    return torch.load(file, weights_only=True)["global_step"]


@pytest.mark.parametrize(("keep", "kept"), [(1, []), (2, [4]), (3, [3, 4])])
def test_the_last_k_are_kept(tmp_path, keep, kept):
    files = AtomicCheckpointIO(keep)
    for step in range(1, 6):
        files.save_checkpoint({"global_step": step}, tmp_path / "last.ckpt")
    assert names(tmp_path) == ["last.ckpt", *(f"step-{step}.ckpt" for step in kept)]
    assert step_of(tmp_path / "last.ckpt") == 5
    for step in kept:
        assert step_of(tmp_path / f"step-{step}.ckpt") == step


def test_old_ones_go_only_after_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    files, events = AtomicCheckpointIO(2), []
    for step in (1, 2):
        files.save_checkpoint({"global_step": step}, tmp_path / "last.ckpt")

    def recorded(name, real):
        def record(*args):
            events.append(name)
            return real(*args)

        return record

    for name in ("sync", "sync_folder"):
        monkeypatch.setattr(_writing, name, recorded(name, getattr(_writing, name)))
    monkeypatch.setattr(Path, "replace", recorded("replace", Path.replace))
    unlink = Path.unlink

    def remove(path, **more):
        events.extend([f"remove {path.name}"] if path.exists() else [])
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", remove)
    files.save_checkpoint({"global_step": 3}, tmp_path / "last.ckpt")
    assert events == ["sync", "replace", "sync_folder", "remove step-1.ckpt"]
    assert names(tmp_path) == ["last.ckpt", "step-2.ckpt"]


def test_without_hard_links_the_earlier_one_is_a_copy(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    test_the_last_k_are_kept(tmp_path, 2, [4])


def test_any_damage_is_found(whole, tmp_path):
    """A file that is cut, or with one bit of it flipped, is refused; a bit that nothing reads changes nothing."""
    source, copy = whole[0].last, tmp_path / "copy.ckpt"
    content, before = source.read_bytes(), torch.load(source, weights_only=True)
    generator = random.Random(0)
    for cut in (1, 1000, len(content) // 2):
        copy.write_bytes(content[:-cut])
        with pytest.raises(CheckpointError, match=r"copy\.ckpt is damaged"):
            check_intact(copy)
    found = 0
    for _ in range(150):
        place, bit = generator.randrange(len(content)), 1 << generator.randrange(8)
        copy.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        try:
            check_intact(copy)
        except CheckpointError:
            found += 1
            continue
        same_tensors(torch.load(copy, weights_only=True)["state_dict"], before["state_dict"])
    assert found > 75  # the rest is headers and padding


def flip(file):
    """One bit in the middle of the largest tensor's bytes, which reading alone would not notice."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1000])


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(whole, copied, damage):
    damage(copied.last)
    assert names(copied.checkpoints) == ["best.ckpt", "last.ckpt", "step-11.ckpt"]
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged \(.*\); resuming from .*step-11\.ckpt"):
        fit(build(tiny_settings(out=str(copied.path)), weights=False), copied, resume=True)
    assert rows(copied) == whole[1]
    same_tensors(torch.load(copied.last, weights_only=True)["state_dict"], whole[2]["state_dict"])
    check_intact(copied.last)


def test_nothing_is_resumed_when_all_are_damaged(copied):
    for file in copied.resumable:
        flip(file)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged .*step-11\.ckpt is damaged .*--init-from .*best"):
        checkpoint_to_resume(copied)


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_reader_names_the_damaged_file_and_an_intact_one(copied, damage):
    damage(copied.best)
    with pytest.raises(CheckpointError, match=r"best\.ckpt is .*last\.ckpt of the same run is intact"):
        read_checkpoint(copied.path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_leaves_no_lock_even_when_its_workers_live_on(tmp_path):
    """A forked child inherits the open file that the lock belongs to."""
    run = RunDir.create(tmp_path / "run")
    run.write_config({})
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        import time

        os.write(tell, b"1")
        time.sleep(60)
        os._exit(0)
    os.read(ready, 1)  # the child has begun, and let go of the lock
    try:
        with pytest.raises(FileExistsError, match=rf"in use by another process \({os.getpid()}\)"):
            RunDir.reopen(run.path)
        run.close()  # what the end of this process would do
        RunDir.reopen(run.path).close()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
