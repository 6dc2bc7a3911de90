"""Entry point of the tests' ranks: the training with parameter servers, which also reports where variables lie."""

import json
from pathlib import Path
from typing import Any

from mirrorspark.training.executor.worker_control import Finish, WorkerControl
from mirrorspark.training.programs.keras_fit import fit
from mirrorspark.training.programs.parameter_servers import train as parameter_server
from mirrorspark.training.protocol.plan import TrainingPlan

build_model = fit.build_model


def placement_file(checkpoints: str) -> Path:
    return Path(f"{checkpoints}-placement.json")


def train(plan: TrainingPlan, control: WorkerControl, finish: Finish) -> None:
    def build(*arguments: Any) -> Any:
        model = build_model(*arguments)
        placed = {variable.name: [variable.shape.as_list(), variable.device] for variable in model.trainable_variables}
        placement_file(plan.checkpoints).write_text(json.dumps(placed))
        return model

    fit.build_model = build
    parameter_server.train(plan, control, finish)
