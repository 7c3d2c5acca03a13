"""Checkpoints in shards: what is in them, how they replace each other, what becomes of damaged and unfinished ones."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vssm
from tests.train.interrupted import rows, same_tensors
from tests.train.ranks import run_ranks
from tests.train.test_ranks import settings_of, train, train_here
from vssm._sharded import MANIFEST, REST, damage, describe_file, write_manifest
from vssm.hub.run import read_run
from vssm.inference.checkpoint import is_ours, read_checkpoint
from vssm.inference.run_dir import RunDir, checkpoint_file
from vssm.report.runs import first_difference
from vssm.settings import Settings
from vssm.train.checkpoint_files import AtomicCheckpointIO, checkpoint_to_resume
from vssm.weights import convert
from vssm.weights.archive import check_intact
from vssm.weights.errors import CheckpointError
from vssm.weights.read import read_content
from vssm.weights.sharded import read_sharded

if os.name == "nt":
    pytest.skip("its processes are forked", allow_module_level=True)
FORK = multiprocessing.get_context("fork")  # they need nothing but what is imported here


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def content_of(step):
    """A checkpoint as of a training; one tensor has fewer rows than there are processes, one is in half precision."""
    values = torch.arange(35.0).view(5, 7) + step
    weights = {"odd": values, "row": values[:1] / 3, "half": values.bfloat16(), "mean": torch.tensor([1.0, step])}
    moments = {0: {"step": torch.tensor(float(step)), "exp_avg": values * 2}}
    groups = [{"lr": 0.1, "params": [0]}]
    states = [{"state": moments, "param_groups": groups}]
    return {"global_step": step, "state_dict": weights, "optimizer_states": states, "vssm": {"format": 1}}


def save_here(folder, keep, steps, before=lambda step: None):
    """What each process does: it saves its parts of `content_of` each step, as last.ckpt."""
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    from vssm.train.sharded_files import save_shards

    dist.init_process_group("gloo")
    mesh, files = init_device_mesh("cpu", (dist.get_world_size(),)), AtomicCheckpointIO(keep)
    for step in steps:
        content = content_of(step)
        weights, moments = content["state_dict"], content["optimizer_states"][0]["state"][0]
        for name in ("odd", "row", "half"):
            weights[name] = distribute_tensor(weights[name], mesh, [Shard(0)])
        moments["exp_avg"] = distribute_tensor(moments["exp_avg"], mesh, [Shard(0)])
        before(step)
        save_shards(content, Path(folder) / "last.ckpt", files)
    dist.destroy_process_group()


def die_half_way(step=2):
    """SIGKILL to this process when it has written half of the next file, from the second step on."""
    if step < 2:
        return

    def die(descriptor):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = die


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three checkpoints of two processes, of which the last two are kept."""
    run = RunDir(tmp_path_factory.mktemp("written") / "run")
    run.checkpoints.mkdir(parents=True)
    run_ranks(save_here, 2, str(run.checkpoints), 2, (1, 2, 3), context=FORK)
    return run


@pytest.fixture
def copied(written, tmp_path):
    shutil.copytree(written.path, tmp_path / "run")
    return RunDir(tmp_path / "run")


def assert_content(found, step):
    expected = content_of(step)
    assert found.keys() == expected.keys()
    same_tensors(found["state_dict"], expected["state_dict"])
    assert [*found["state_dict"]] == [*expected["state_dict"]]
    (one,), (other,) = found["optimizer_states"], expected["optimizer_states"]
    assert one["param_groups"] == other["param_groups"]
    same_tensors(one["state"][0], other["state"][0])


def test_shards_hold_what_a_whole_file_does(written):
    """Each process wrote its rows, none wrote them twice, and nothing in the folder is a pickle that is read freely."""
    assert names(written.checkpoints) == ["last.ckpt", "step-2.ckpt"]
    shards = [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)]
    assert names(written.last) == [MANIFEST, REST, *shards]
    held = [load_file(written.last / name)["state_dict/odd"] for name in shards]
    assert [len(part) for part in held] == [3, 2]
    assert_content(read_content(written.last), 3)
    assert_content(read_content(written.checkpoints / "step-2.ckpt"), 2)
    assert_content(AtomicCheckpointIO().load_checkpoint(written.last), 3)
    shapes = read_content(written.last, shapes_only=True)["state_dict"]["odd"]
    assert torch.equal(shapes, torch.zeros(5, 7))


def flip(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "a bit of a shard": (
        lambda run: flip(run.last / "shard-00002-model-00001-of-00001.safetensors"),
        "the checksum of",
    ),
    "a bit of the rest": (lambda run: flip(run.last / REST), "the checksum of rest.ckpt does not match"),
    "a shard cut": (lambda run: os.truncate(run.last / "shard-00001-model-00001-of-00001.safetensors", 99), "99 bytes"),
    "a shard missing": (lambda run: (run.last / "shard-00001-model-00001-of-00001.safetensors").unlink(), "its files"),
    "a file too many": (lambda run: (run.last / "other.safetensors").touch(), "its files are not those"),
    "no manifest": (lambda run: (run.last / MANIFEST).unlink(), "manifest.json is missing"),
    "half a manifest": (lambda run: os.truncate(run.last / MANIFEST, 60), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_gives_way_to_the_one_before(copied, kind):
    make, words = DAMAGE[kind]
    make(copied)
    with pytest.raises(CheckpointError, match=rf"last\.ckpt is damaged \(.*{words}"):
        check_intact(copied.last)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged .*step-2\.ckpt of the same run is intact"):
        read_checkpoint(copied.last)
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged .*; resuming from .*step-2\.ckpt"):
        assert checkpoint_to_resume(copied) == copied.checkpoints / "step-2.ckpt"


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("harm",))


def test_a_strangers_folder_runs_nothing(copied, monkeypatch):
    """Neither by its rest nor by the metadata that torch keeps as a pickle, even with a manifest that is right."""
    monkeypatch.chdir(copied.path)
    rest = torch.load(copied.last / REST, weights_only=True)
    torch.save(rest | {"callbacks": Harmful()}, copied.last / REST)
    write_manifest(copied.last, {f.name: describe_file(f) for f in copied.last.iterdir() if f.name != MANIFEST})
    assert damage(copied.last) is None
    with pytest.raises(CheckpointError, match=r"rest\.ckpt is refused.* would run posix\.mkdir"):
        read_content(copied.last)
    torch.save(rest, copied.last / REST)
    (copied.last / ".metadata").write_bytes(pickle.dumps(Harmful()))
    write_manifest(copied.last, {f.name: describe_file(f) for f in copied.last.iterdir() if f.name != MANIFEST})
    assert_content(read_content(copied.last), 3)
    assert not (copied.path / "harm").exists()


@pytest.mark.parametrize("offsets", [[1, 0], [10**15, 0]])
def test_shards_that_leave_a_gap_are_refused(copied, offsets):
    """A header that names another place would give values that nothing has written, or a tensor of petabytes."""
    shard = copied.last / "shard-00001-model-00001-of-00001.safetensors"
    tensors = load_file(shard)
    info = {name: {"saved_offsets": [0] * tensor.dim()} for name, tensor in tensors.items()}
    info["state_dict/odd"]["saved_offsets"] = offsets
    save_file(tensors, shard, {"DCP_SHARDING_INFO": json.dumps(info)})
    write_manifest(copied.last, {f.name: describe_file(f) for f in copied.last.iterdir() if f.name != MANIFEST})
    with pytest.raises(CheckpointError, match="a part of state_dict/odd is missing"):
        read_content(copied.last)


def test_tensors_beyond_the_limit_are_refused(copied):
    with pytest.raises(CheckpointError, match="has 378 bytes of tensors, more than the 377 allowed"):
        read_sharded(copied.last, read_content, 377)


def test_files_and_folders_replace_each_other(copied, tmp_path):
    """As of a training that goes on with another strategy, or with the setting changed."""
    files = AtomicCheckpointIO(2)
    files.load_checkpoint(copied.last)
    files.save_checkpoint({"global_step": 4}, copied.last)
    assert names(copied.checkpoints) == ["last.ckpt", "step-3.ckpt"]
    assert copied.last.is_file()
    assert_content(read_content(copied.checkpoints / "step-3.ckpt"), 3)
    shutil.copytree(copied.checkpoints / "step-3.ckpt", copied.checkpoints / ".last.ckpt.1.tmp")
    files.take(copied.checkpoints / ".last.ckpt.1.tmp", copied.last, 5)
    assert names(copied.checkpoints) == ["last.ckpt", "step-4.ckpt"]
    assert torch.load(copied.checkpoints / "step-4.ckpt", weights_only=True) == {"global_step": 4}
    for expected in ("is_dir", "is_file"):
        if expected == "is_dir":
            shutil.copytree(copied.last, copied.checkpoints / ".best.ckpt.1.tmp")
            files.take(copied.checkpoints / ".best.ckpt.1.tmp", copied.best, 5)
        else:
            files.save_checkpoint({"global_step": 6}, copied.best)
        assert getattr(copied.best, expected)()
        assert names(copied.checkpoints) == ["best.ckpt", "last.ckpt", "step-4.ckpt"]


def test_killed_between_two_names_the_one_before_is_found(copied, monkeypatch):
    """The moment in which last.ckpt has its new name step-3.ckpt, and the new folder not yet its own."""
    files = AtomicCheckpointIO(1)
    files.load_checkpoint(copied.last)
    new = copied.checkpoints / ".last.ckpt.1.tmp"
    shutil.copytree(copied.last, new)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        files.take(new, copied.last, 4)
    assert names(copied.checkpoints) == [".last.ckpt.1.tmp", "step-2.ckpt", "step-3.ckpt"]
    assert checkpoint_to_resume(copied) == copied.checkpoints / "step-3.ckpt"
    copied.config.touch()
    RunDir.reopen(copied.path).close()
    assert names(copied.checkpoints) == ["step-2.ckpt", "step-3.ckpt"]


def test_killed_while_they_write_processes_leave_the_one_before(tmp_path):
    """Both die, each with half of its shard on the disk."""
    run = RunDir(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    with pytest.raises(AssertionError):
        run_ranks(save_here, 2, str(run.checkpoints), 2, (1, 2), die_half_way, context=FORK)
    last, unfinished = sorted(run.checkpoints.iterdir(), reverse=True)
    assert (last.name, unfinished.name.endswith(".tmp"), MANIFEST in names(unfinished)) == ("last.ckpt", True, False)
    assert checkpoint_to_resume(run) == last
    assert_content(read_content(last), 1)


def flushed_here(folder):
    """Notes what is flushed and renamed for the second checkpoint, and removed after it."""
    events, fsync, replace, remove = [], os.fsync, Path.replace, shutil.rmtree

    def before(step):
        if step == 2:
            os.fsync = lambda number: (events.append(Path(f"/proc/self/fd/{number}").readlink().name), fsync(number))[1]
            Path.replace = lambda path, to: (events.append(f"-> {to.name}"), replace(path, to))[1]
            shutil.rmtree = lambda path: (events.append(f"remove {path.name}"), remove(path))[1]

    save_here(folder, 1, (1, 2), before)
    rank = os.environ["RANK"]
    (Path(folder) / f"events{rank}").write_text(json.dumps(events))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files are named by their descriptor")
def test_all_is_on_the_disk_before_it_has_its_name_and_before_the_old_one_goes(tmp_path):
    run_ranks(flushed_here, 2, str(tmp_path / "checkpoints"), context=FORK)
    first, second = (json.loads((tmp_path / f"checkpoints/events{rank}").read_text()) for rank in (0, 1))
    shards = [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)]
    assert second == [shards[1]]
    folder = first[3]
    assert folder.startswith(".last.ckpt")
    assert first == [
        *(shards[0], REST, MANIFEST, folder),
        *("-> last.ckpt", "checkpoints", "remove .step-1.ckpt.old.tmp"),
    ]


def fail_here(folder, whose):
    """The disk of one process is full: all of them say so."""
    import safetensors.torch

    from vssm.train import sharded_files

    def refused(*_, **__):
        raise OSError(28, "No space left on device")

    def before(step):
        if step == 2 and os.environ["RANK"] == whose[-1]:
            if whose == "shard of 1":
                safetensors.torch.save = refused
            else:
                sharded_files.write = refused

    with pytest.raises(OSError, match=r"No space left on device: '.*last\.ckpt'"):
        save_here(folder, 2, (1, 2), before)


@pytest.mark.parametrize("whose", ["shard of 1", "rest of 0"])
def test_a_full_disk_of_one_ends_all_and_leaves_the_one_before(tmp_path, whose):
    run_ranks(fail_here, 2, str(tmp_path), whose, context=FORK, timeout=30)
    assert names(tmp_path) == ["last.ckpt"]
    assert_content(read_content(tmp_path / "last.ckpt"), 1)


def test_shards_need_the_strategy_that_makes_them():
    with pytest.raises(
        ValueError, match=r"sharded_checkpoints is true with trainer\.strategy ddp.*--trainer\.strategy fsdp"
    ):
        Settings.from_dict({"trainer": {"strategy": "ddp", "sharded_checkpoints": True}}).check()


@pytest.mark.full
def test_more_processes_than_rows(tmp_path):
    run_ranks(save_here, 3, str(tmp_path), 1, (1,), context=FORK)
    assert_content(read_content(tmp_path / "last.ckpt"), 1)


def shards_of(steps):
    settings = settings_of("vmamba_nano", steps, mesa_weight=1.0, mesa_start_epoch=1, layer_decay=0.7)
    settings.trainer.sharded_checkpoints, settings.save_every_n_steps, settings.trainer.strategy = True, 1, "fsdp"
    return settings


def die_in_training(settings, val_images, step):
    """Both die while they write the checkpoint of a step."""
    from vssm.train import sharding

    real = sharding.save_shards

    def save(checkpoint, path, files):
        if checkpoint["global_step"] == step:
            die_half_way()
        real(checkpoint, path, files)

    sharding.save_shards = save
    train_here(settings, val_images, False, None)


@pytest.mark.full
def test_a_killed_training_goes_on_from_its_shards(tmp_path):
    """Bit for bit as without the kill, and within rounding also in one process, whole or by shards."""
    whole = train(shards_of(6), tmp_path / "whole", 2)
    settings = shards_of(6)
    settings.trainer.devices, settings.out, settings.data.batch_size = 2, str(tmp_path / "killed"), 8
    with pytest.raises(AssertionError):
        run_ranks(die_in_training, 2, settings, 17, 5)
    assert any(name.startswith(".last") for name in names(RunDir(tmp_path / "killed").checkpoints))
    RunDir.reopen(tmp_path / "killed").close()
    assert names(RunDir(tmp_path / "killed").checkpoints) == ["best.ckpt", "last.ckpt", "step-3.ckpt"]
    for copy in ("fsdp", "auto"):
        shutil.copytree(tmp_path / "killed", tmp_path / copy)
    killed = train(settings, tmp_path / "killed", 2, resume=True)
    assert first_difference(whole.path, killed.path) is None
    same_tensors(read_content(whole.last)["optimizer_states"][0]["state"][0], moments_of(killed))
    for strategy in ("fsdp", "auto"):
        settings.trainer.sharded_checkpoints = strategy == "fsdp"
        one = train(settings, tmp_path / strategy, 1, resume=True, strategy=strategy)
        assert one.last.is_dir() == (strategy == "fsdp")
        for left, right in zip(rows(one), rows(whole), strict=True):
            assert float(left["train_loss"] or 0) == pytest.approx(float(right["train_loss"] or 0), abs=1e-5)
        torch.testing.assert_close(moments_of(one), moments_of(whole), rtol=0, atol=1e-5)


def moments_of(run):
    return read_content(run.last)["optimizer_states"][0]["state"][0]


@pytest.mark.full
def test_a_run_in_shards_is_a_run_like_any_other(tmp_path):
    """With the very weights of a run with whole files, for every reader; the two processes go on from it too."""
    runs = []
    for sharded in (True, False):
        settings = shards_of(2)
        settings.trainer.sharded_checkpoints = sharded
        runs.append(train(settings, tmp_path / f"sharded-{sharded}", 2))
    run, plain = runs
    assert run.best.is_dir()
    assert plain.best.is_file()
    assert first_difference(run.path, plain.path) is None
    assert checkpoint_file(run.best) == run.best == checkpoint_file(run.path)
    assert is_ours(run.path)
    images = torch.rand(2, 1, 32, 32)
    outputs = [read_run(path).create_model()(images) for path in (run.path, run.best, plain.path)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(vssm.load(run.path).model(images), vssm.load(plain.path).model(images))
    convert(run.best, tmp_path / "one.safetensors")
    convert(plain.best, tmp_path / "other.safetensors")
    same_tensors(load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "other.safetensors"))
