"""MLflow: the run `name` of the experiment $MLFLOW_EXPERIMENT_NAME (or passl_densecl), continued under one id.

$MLFLOW_TRACKING_URI names the server; without it the record is in files, `mlruns` beside the run folder. MLflow cannot
remove points: the steps that a resumed run repeats are recorded a second time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import numpy as np

from passl_densecl.reliability.loggers.base import LoggedRun, Logger


class MLflow(Logger):
    package, install, remote = "mlflow", "mlflow-skinny>=3.17,<4", True

    def __init__(self, run: LoggedRun) -> None:
        from mlflow import MlflowClient  # type: ignore[import-not-found]
        from mlflow.entities import Metric, Param  # type: ignore[import-not-found]

        self._metric = Metric
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow refuses a store of files otherwise
            address = str((run.folder.parent / "mlruns").absolute())
        self._client = MlflowClient(tracking_uri=address)
        self._id, new = run.remembered("mlflow", lambda: self._create(run.config.name))
        if new:
            params = [Param(key, str(value)) for key, value in run.settings.items()]
            self._client.log_batch(self._id, params=params)
        else:
            self._client.update_run(self._id, status="RUNNING")

    def _create(self, name: str) -> str:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "passl_densecl"
        experiment = self._client.get_experiment_by_name(title)
        number = experiment.experiment_id if experiment else self._client.create_experiment(title)
        return self._client.create_run(number, run_name=name).info.run_id

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        now = round(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[self._metric(tag, value, now, step) for tag, value in values.items()])

    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        self._client.log_image(self._id, pixels, key=tag, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)
