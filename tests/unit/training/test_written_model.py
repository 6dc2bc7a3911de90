"""T3, T8: an exported model's description of its outputs is true."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.features.fitted import FittedFeatures, NumericStatistics
from mirrorspark.data_pipelines.features.kinds import Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.models import regression
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.training.results.export import _write_model


@pytest.mark.parametrize(
    ("quantiles", "outputs"),
    [((0.9,), {"score"}), ((0.1, 0.5, 0.9), {"score", "quantiles"})],
    ids=["one", "several"],
)
def test_a_regression_of_any_number_of_quantiles_is_loaded_and_scores(
    tmp_path: Path, quantiles: tuple[float, ...], outputs: set[str]
) -> None:
    spec = FeatureSpec((Numeric("size"),), Label("cost", "numeric"), ("id",))
    statistics = NumericStatistics(0.0, 1.0, -4.0, 4.0, 100)
    fitted = FittedFeatures(spec, {}, {"size": statistics, "cost": statistics})
    model = regression.build(regression.Settings(loss="quantile", quantiles=quantiles), fitted, 1)
    plan = SimpleNamespace(folder=str(tmp_path), model="regression")
    dataset = SimpleNamespace(features=fitted, spec=fitted.spec)
    _write_model(cast(Any, plan), cast(Any, dataset), "regression", regression, model, None, lambda *_: None)
    scores = LoadedModel(tmp_path).score(pa.table({"size": [0.5, 1.5]}))
    assert set(scores) == outputs
