import pytest

from vssm._writing import replacing
from vssm._yaml import read_yaml
from vssm.inference.run_dir import RunDir, checkpoint_file, free_path


def test_a_directory_in_use_is_refused(tmp_path):
    run = RunDir.create(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"already in use .* choose another --out, or remove"):
        RunDir.create(tmp_path / "run")
    run.last.write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"continue it with --resume .*run"):
        RunDir.create(tmp_path / "run")


def test_one_process_at_a_time(tmp_path):
    run = RunDir.create(tmp_path / "run")
    run.write_config({"seed": 1})
    run.last.write_bytes(b"")
    with pytest.raises(FileExistsError, match="in use by another process"):
        RunDir.reopen(run.path)
    run.close()
    assert RunDir.reopen(run.path).read_config() == {"seed": 1}


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        RunDir.reopen(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"has no config\.yaml"):
        RunDir.reopen(tmp_path)
    (tmp_path / "file").write_text("")
    for refused in (RunDir.create, RunDir.reopen):
        with pytest.raises(NotADirectoryError, match="is a file"):
            refused(tmp_path / "file")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"), replacing(path) as new:
        new.write_text("ne")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as new:
        new.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_goes_when_the_run_is_reopened(tmp_path):
    run = RunDir.create(tmp_path / "run")
    run.write_config({})
    for folder in (run.path, run.checkpoints):
        (folder / ".last.ckpt.123.tmp").write_bytes(b"half")
    run.last.write_bytes(b"whole")
    run.close()
    run = RunDir.reopen(run.path)
    assert sorted(path.name for path in run.path.rglob("*")) == [".lock", "checkpoints", "config.yaml", "last.ckpt"]
    run.close()


def test_checkpoint_file(tmp_path):
    run = RunDir.create(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"without checkpoints/best\.ckpt"):
        checkpoint_file(run.path)
    run.last.write_bytes(b"")
    assert checkpoint_file(run.path) == run.last
    run.best.write_bytes(b"")
    assert checkpoint_file(run.path) == run.best
    assert checkpoint_file(run.last) == run.last
    with pytest.raises(FileNotFoundError, match="does not exist"):
        checkpoint_file(tmp_path / "none")


def test_free_path(tmp_path):
    assert free_path(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").mkdir()
    assert free_path(tmp_path / "run") == tmp_path / "run-3"


@pytest.mark.parametrize(("text", "words"), [("a: [1", "not valid YAML"), ("- 1", "expected a mapping")])
def test_bad_yaml_is_named(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.yaml: {words}"):
        read_yaml(tmp_path / "config.yaml")
