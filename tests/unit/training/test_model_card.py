"""L6: the card of a registered model, which MLflow shows with the version."""

import math

from mirrorspark.data_pipelines.features.kinds import Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.training.results.report.model_cards import model_card

BASELINE = {"name": "hist_gradient_boosting", "metrics": {"auc": 0.7, "log_loss": 0.5}}


def spec(columns: int) -> FeatureSpec:
    features = {f"c{number}": {"kind": "numeric"} for number in range(columns)}
    return FeatureSpec.from_dict({"features": features, "label": "late", "keys": "id"})


def card(columns: int = 2, name: str = "late") -> str:
    metrics = {"validation": {"auc": 0.72}, "test": {"auc": 0.75, "log_loss": 0.4}}
    rows = {"train": 80_000, "validation": 10_000, "test": 10_000}
    return model_card(f"models:/{name}/3", "multi_field", "late-1", spec(columns), "late-0a1b", rows, metrics, BASELINE)


def test_the_card_says_what_is_predicted_how_well_from_what_data_and_how_to_score() -> None:
    assert (
        card()
        == """Predicts `late` (binary) from 2 columns: `c0`, `c1`. Its prediction is: probability that late is 1.

The model is better than gradient boosting on the test rows, in AUC (0.75 against 0.7) and log loss (0.4 against 0.5).

|  | validation | test | gradient boosting |
| --- | --- | --- | --- |
| AUC | 0.7200 | 0.7500 | 0.7000 |
| log loss |  | 0.4000 | 0.5000 |

Data: 80,000 train, 10,000 validation, 10,000 test rows of `late-0a1b`. Architecture: `multi_field`. Run: `late-1`; \
its artifact `report.html` has the plots.

To score a table:

```python
import mirrorspark as ms

scores = ms.score(table, "models:/late/3", keys='id')
```

In a process without Mirrorspark:

```python
import mlflow

scores = mlflow.pyfunc.load_model("models:/late/3").predict(rows)
```"""
    )


def test_a_wide_table_has_a_card_that_mlflow_takes() -> None:
    wide = card(500)
    assert "from 500 columns: `c0`, " in wide
    assert "`c29` and 470 more." in wide
    assert math.isclose(len(card(5000)), len(wide), abs_tol=10)
    assert len(card(name="x" * 9000)) == 5000


def test_values_of_the_label_are_text_in_the_card() -> None:
    label = Label("price", positive="$100_$200 <b>*\n|")
    of = FeatureSpec((Numeric("size"),), label, keys=("row",))
    card = model_card("models:/price/1", "multi_field", "price-1", of, "price-2", {"train": 3}, {}, {})
    assert r"Its prediction is: probability that price is \$100\_\$200 \<b\>\* \|." in card
