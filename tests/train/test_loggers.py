"""Weights & Biases and MLflow get what metrics.csv gets, once, in one run however often the training is resumed."""

import json
import struct
import time
import warnings
from pathlib import Path

import pytest
import yaml

from tests.train.interrupted import KillAt, Killed
from tests.train.tiny import tiny_settings
from vssm.train.callbacks import read_metrics
from vssm.train.fit import build, fit, start_run
from vssm.train.loggers import MLflow, WandB
from vssm.train.stopping import Preempted

EACH = pytest.mark.parametrize("name", ["mlflow", "wandb"])


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def settings_of(name, tmp_path):
    pytest.importorskip(name)
    settings = tiny_settings(log=f"csv+{name}", out=str(tmp_path / "run"), save_every_n_steps=4)
    settings.trainer.max_epochs = 2
    return settings


def expected(run):
    """(column, step) -> value of metrics.csv, the speed left out."""
    rows = [(int(row["step"]), row) for row in read_metrics(run.metrics)]
    found = {(name, step): float(value) for step, row in rows for name, value in row.items() if value}
    return {(name, step): value for (name, step), value in found.items() if name not in ("step", "images_per_second")}


def in_mlflow(run):
    """The runs of the store with state and settings, and every value written."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("vssm")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == yaml.safe_load(run.loggers.read_text())["mlflow"]["run_id"]
    assert (found.info.run_name, found.data.params["optim/lr"]) == ("run", "0.003")
    histories = {name: client.get_metric_history(found.info.run_id, name) for name in found.data.metrics}
    written = [((name, entry.step), entry.value) for name, entries in histories.items() for entry in entries]
    return found.info.status, written


def records(file):
    """Of a .wandb file, in blocks of 32 KiB each; its last one is written after the process of the training went on."""
    from wandb.proto import wandb_internal_pb2 as messages

    found = []
    for _ in range(300):
        data, at, content, found = file.read_bytes(), 7, b"", []
        while at + 7 <= len(data):
            left = 32768 - at % 32768
            if left < 7:
                at += left
                continue
            length, part = struct.unpack("<HB", data[at + 4 : at + 7])
            content += data[at + 7 : at + 7 + length]
            at += 7 + length
            if part in (1, 4):  # whole, or the last part
                found.append(messages.Record.FromString(content))  # type: ignore[attr-defined]
                content = b""
        if found and found[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    return found


def in_wandb(run):
    """The same of the files that offline runs leave."""
    written, names, lr, status = [], set(), None, None
    for file in sorted((run.path / "wandb").glob("offline-run-*/*.wandb")):
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                names.add((record.run.run_id, record.run.project, record.run.display_name))
            entries = {"run": record.run.config.update, "config": record.config.update}.get(str(kind), ())
            lr = {entry.key: json.loads(entry.value_json) for entry in entries}.get("optim", {}).get("lr", lr)
            if kind == "history":
                row = {e.key or e.nested_key[0]: json.loads(e.value_json) for e in record.history.item}
                step = row["trainer/global_step"]
                written += [((key, step), value) for key, value in row.items() if key[0] != "_" and "/" not in key]
            if kind == "exit" and status != "KILLED":
                status = {0: "FINISHED", 1: "FAILED"}[record.exit.exit_code]
            if kind == "preempting":
                status = "KILLED"
    own = yaml.safe_load(run.loggers.read_text())["wandb"]
    assert names == {(own["id"], "vssm", "run")} and lr == 0.003
    return status, written


@EACH
def test_the_same_numbers_as_in_the_csv(tmp_path, name):
    """Of a run that is killed twice, at different distances from its checkpoint, and resumed."""
    settings = settings_of(name, tmp_path)
    run = start_run(settings)
    for step, resume in ((7, False), (6, True)):
        with pytest.raises(Killed):
            fit(build(settings, weights=not resume), run, resume, [KillAt(step)])
    fit(build(settings, weights=False), run, resume=True)
    status, written = {"mlflow": in_mlflow, "wandb": in_wandb}[name](run)
    assert status == "FINISHED"
    assert len(written) == len(dict(written)), "nothing twice"
    written = {key: value for key, value in written if key[0] != "images_per_second"}
    assert written == pytest.approx(expected(run), rel=1e-12)
    assert {step for column, step in written if column == "train_loss"} == set(range(1, 9))


def test_how_a_run_ended(tmp_path):
    settings = settings_of("mlflow", tmp_path)
    run = start_run(settings)
    with pytest.raises(Killed):
        fit(build(settings), run, callbacks=[KillAt(1)])
    assert in_mlflow(run)[0] == "FAILED"


class Leave(KillAt):
    def on_train_batch_start(self, trainer, *_):
        raise Preempted("stopped")


@EACH
def test_a_signal_is_no_failure(tmp_path, name):
    settings = settings_of(name, tmp_path)
    run = start_run(settings)
    with pytest.raises(Preempted):
        fit(build(settings), run, callbacks=[Leave(0)])
    assert {"mlflow": in_mlflow, "wandb": in_wandb}[name](run)[0] == "KILLED"


@EACH
def test_a_missing_package_is_named_before_anything_is_read(tmp_path, name, monkeypatch):
    monkeypatch.setattr("vssm.train.loggers.find_spec", lambda asked: None)
    settings = tiny_settings(log=f"csv+{name}")
    settings.data.name, settings.data.root = "imagefolder", str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=rf"needs the package {name}, .*: pip install 'vssm\[{name}\]'"):
        build(settings)


@pytest.mark.parametrize(("name", "kind"), [("mlflow", MLflow), ("wandb", WandB)])
def test_what_cannot_be_reached(tmp_path, name, kind, monkeypatch):
    """An error when a run begins; a warning when it goes on, and in its middle: metrics.csv has all rows."""
    settings = settings_of(name, tmp_path)
    run = start_run(settings)

    def refuse(*_):
        raise OSError("no route to the host")

    connect = kind._connect
    monkeypatch.setattr(kind, "_connect", refuse)
    with pytest.raises(ValueError, match=rf"{name} cannot be started: no route to the host; (run|set) .* leave {name}"):
        fit(build(settings), run)
    assert not run.metrics.exists()
    run.loggers.write_text(f"{name}: {{id: x, run_id: x, project: vssm}}\n")
    settings.trainer.max_epochs = 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(build(settings), run)
        run.loggers.unlink()
        monkeypatch.setattr(kind, "_connect", connect)
        monkeypatch.setattr(kind, "_look_back", refuse)
        fit(build(settings), run)
    words = f"{name} gets no more rows from this process (no route to the host); {run.metrics} has them all"
    assert [str(one.message) for one in told if "route" in str(one.message)] == [words] * 2
    assert len([row for row in read_metrics(run.metrics) if row["train_loss"]]) == 4
    assert Path(run.last).exists()
