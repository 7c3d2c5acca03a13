"""The rows of metrics.csv for Weights & Biases and MLflow too, through Lightning's loggers."""

import os
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from vssm._yaml import read_yaml, write_yaml
from vssm.inference.run_dir import RunDir
from vssm.settings import Settings
from vssm.train import tensorboard

Status = Literal["finished", "failed", "killed"]
PROJECT = "vssm"


class Board(Protocol):
    """What shows the rows of metrics.csv. Only the first process of a training has one."""

    def open(self) -> None:
        """Before the training. Raises ValueError with the remedy for what cannot be reached."""
        ...

    def start(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """`rows` are those of metrics.csv when this process began; those after `step` will be written again."""
        ...

    def write(self, row: Mapping[str, float]) -> None: ...

    def close(self, status: Status) -> None:
        """Also of what was never opened, or is closed."""
        ...


class Tracker:
    """A run of an experiment tracker, which a resumed training continues: RUN/loggers.yaml has its identity.

    It gets the columns of metrics.csv under their names at their steps, each once, and the settings as
    hyperparameters. What cannot be reached is an error at the beginning of a run. Later it is a warning, and the
    training goes on without it: metrics.csv has all rows.
    """

    name = ""

    def __init__(self, run: RunDir, settings: Settings):
        require(self.name)
        self.run, self.settings = run, settings
        self._logger: Any = None
        self._until: dict[str, int] = {}  # the last step at which a column was written

    def open(self) -> None:
        stored = self.stored()
        try:
            self._logger = self._connect(stored)
        except self.errors() as error:
            if stored:
                self._give_up(error)
                return
            raise ValueError(
                f"log is {self.settings.log}, but {self.name} cannot be started: {_one_line(error)}; {self.remedy()}, "
                f"or leave {self.name} out of log"
            ) from error

    def start(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        self._tell(lambda: self._look_back(rows))
        for row in rows:
            if int(row["step"]) <= step:
                self.write({name: float(value) for name, value in row.items() if value})

    def write(self, row: Mapping[str, float]) -> None:
        step = int(row["step"])
        new = {name: value for name, value in row.items() if name != "step" and step > self._until.get(name, -1)}
        if new:
            self._tell(lambda: self._logger.log_metrics(new, step))
            self._until |= dict.fromkeys(new, step)

    def close(self, status: Status) -> None:
        self._tell(lambda: self._end(status))
        self._logger = None

    def stored(self) -> dict[str, Any]:
        """What RUN/loggers.yaml has of this tracker; empty when its run is new."""
        return read_yaml(self.run.loggers).get(self.name, {}) if self.run.loggers.exists() else {}

    def store(self, plain: dict[str, Any]) -> None:
        others = read_yaml(self.run.loggers) if self.run.loggers.exists() else {}
        write_yaml(self.run.loggers, others | {self.name: plain})

    def errors(self) -> tuple[type[Exception], ...]:
        """What the tracker raises where its server or its files cannot be reached."""
        raise NotImplementedError

    def remedy(self) -> str:
        raise NotImplementedError

    def _connect(self, stored: dict[str, Any]) -> Any:
        """Lightning's logger, of the run that `stored` names or of a new one."""
        raise NotImplementedError

    def _look_back(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Sets `_until` to what earlier processes wrote."""
        raise NotImplementedError

    def _end(self, status: Status) -> None:
        raise NotImplementedError

    def _tell(self, what: Callable[[], object]) -> None:
        if self._logger is None:
            return
        try:
            what()
        except self.errors() as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._logger = None
        warnings.warn(
            f"{self.name} gets no more rows from this process ({_one_line(error)}); {self.run.metrics} has them all",
            stacklevel=2,
        )


class WandB(Tracker):
    """A run of Weights & Biases, with the name of the run directory, in the project $WANDB_PROJECT, or `vssm`."""

    name = "wandb"

    def errors(self) -> tuple[type[Exception], ...]:
        from wandb.errors import Error

        return Error, OSError

    def remedy(self) -> str:
        return "run `wandb login`, or set WANDB_MODE=offline"

    def _connect(self, stored: dict[str, Any]) -> Any:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        own = stored or {"id": uuid.uuid4().hex[:8], "project": os.environ.get("WANDB_PROJECT", PROJECT)}
        self._until = dict(own.get("until", {}))
        quiet = wandb.Settings(console="off")  # what vssm prints is drawn again and again
        logger = WandbLogger(
            name=self.run.path.name, save_dir=self.run.path, id=own["id"], project=own["project"], settings=quiet
        )
        logger.log_hyperparams(self.settings.as_dict())
        self.store(own)
        return logger

    def _look_back(self, rows: Sequence[Mapping[str, str]]) -> None:
        # It cannot be asked (offline): what metrics.csv had was written, and what it had before an earlier resume.
        for row in rows:
            for column, value in row.items():
                if value:
                    self._until[column] = max(self._until.get(column, -1), int(row["step"]))
        if rows:
            self.store(self.stored() | {"until": self._until})

    def _end(self, status: Status) -> None:
        if status == "killed":
            self._logger.experiment.mark_preempting()
        self._logger.experiment.finish(exit_code=0 if status == "finished" else 1)


class MLflow(Tracker):
    """A run of MLflow, with the name of the run directory, in the experiment $MLFLOW_EXPERIMENT_NAME, or `vssm`, of the
    store $MLFLOW_TRACKING_URI, or MLflow's own default (mlflow.db here)."""

    name = "mlflow"

    def errors(self) -> tuple[type[Exception], ...]:
        from mlflow.exceptions import MlflowException

        return MlflowException, OSError

    def remedy(self) -> str:
        return "set MLFLOW_TRACKING_URI to your server, or to sqlite:///FILE"

    def _connect(self, stored: dict[str, Any]) -> Any:
        import mlflow
        from lightning.pytorch.loggers import MLFlowLogger

        store = os.environ.get("MLFLOW_TRACKING_URI") or stored.get("tracking_uri") or mlflow.get_tracking_uri()
        logger = MLFlowLogger(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            run_name=self.run.path.name,
            tracking_uri=store,
            run_id=stored.get("run_id"),
        )
        if stored:
            logger.experiment.update_run(logger.run_id, status="RUNNING")
        else:
            logger.log_hyperparams(self.settings.as_dict())
            self.store({"run_id": logger.run_id, "tracking_uri": store})
        return logger

    def _look_back(self, rows: Sequence[Mapping[str, str]]) -> None:
        client, run = self._logger.experiment, self._logger.run_id
        for column in client.get_run(run).data.metrics:
            self._until[column] = max(entry.step for entry in client.get_metric_history(run, column))

    def _end(self, status: Status) -> None:
        self._logger.finalize({"finished": "finished", "failed": "failed", "killed": "KILLED"}[status])


def require(name: str) -> None:
    """Raises ValueError with the remedy when the package of this part of `log` is not installed."""
    if name == "tensorboard":
        tensorboard.require()
    elif name != "csv" and find_spec(name) is None:
        raise ValueError(f"log: {name} needs the package {name}, which is not installed: pip install 'vssm[{name}]'")


def create_boards(run: RunDir, settings: Settings) -> list[Board]:
    """What `settings.log` names besides csv. Raises ValueError as `require`."""
    made = {
        "tensorboard": lambda: tensorboard.TensorBoard(run.tensorboard),
        "wandb": lambda: WandB(run, settings),
        "mlflow": lambda: MLflow(run, settings),
    }
    return [made[name]() for name in settings.log.split("+") if name != "csv"]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
