"""A view of an experiment's runs in MLflow's pages whose charts begin with one metric.

MLflow sorts its charts by the names of the metrics. A shared view is what its button *Share* makes: a tag of the
experiment with the state of the page, and an address that names the tag. Sources: ``useSharedExperimentViewState.tsx``
and ``runs-charts.types.ts`` of MLflow 3.
"""

import json
import re
from typing import Any

_TAG_PREFIX = "mlflow.sharedViewState."
_MODEL_METRICS, _SYSTEM_METRICS = "Model metrics", "System metrics"


def share_view(client: Any, experiment_id: str, metric: str) -> str:
    """Share a view of the experiment that begins with the chart of ``metric``; return the part of its address.

    Args:
        client: An ``MlflowClient``.
        experiment_id: The experiment.
        metric: The metric.

    Raises:
        MlflowException: The store refuses the tag of the experiment.
    """
    key = f"mirrorspark-{re.sub(r'[^A-Za-z0-9_-]+', '-', metric)}"
    client.set_experiment_tag(experiment_id, f"{_TAG_PREFIX}{key}", json.dumps(_state(metric)))
    query = f"viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"/#/experiments/{experiment_id}/runs?{query}"


def _state(metric: str) -> dict[str, Any]:
    """Return the state of the page; MLflow adds the charts of all other metrics behind."""
    # A section that counts as reordered takes further charts at its end instead of by their names.
    sections = [
        {"uuid": name, "name": name, "display": True, "isReordered": True, "isGenerated": True, "deleted": False}
        for name in (_MODEL_METRICS, _SYSTEM_METRICS)
    ]
    chart = {
        "type": "LINE",
        "uuid": metric,
        "metricKey": metric,
        "displayName": metric,
        "metricSectionId": _MODEL_METRICS,
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": True,
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
    return {"compareRunCharts": [chart], "compareRunSections": sections, "isAccordionReordered": True}
