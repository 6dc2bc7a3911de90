"""Configurations of TensorFlow Model Analysis as they are written, and what is refused in them (L1)."""

import json
from pathlib import Path

import pytest

from mirrorspark.lifecycle.gate.eval_config import EvalConfigError, read_eval_config
from mirrorspark.lifecycle.gate.slices import Slicing
from mirrorspark.lifecycle.gate.thresholds import Threshold

TEXT = """
# A comment, as in tutorials.
model_specs { name: "baseline" signature_name: "eval" is_baseline: true label_key: "old" }
model_specs { name: "candidate" label_key: "arrived late" example_weight_key: "importance" }
slicing_specs {}
slicing_specs { feature_keys: ["carrier"] }
slicing_specs { feature_keys: ["carrier", "origin"] }
slicing_specs { feature_values { key: "origin" value: "JFK" } feature_values { key: "carrier" value: "AA" } }
metrics_specs {
  model_names: ["candidate", "baseline"]  # as in the file of a run
  metrics { class_name: "ExampleCount" }
  metrics {
    class_name: "AUC"
    threshold {
      value_threshold { lower_bound { value: 0.6 } }
      change_threshold { direction: HIGHER_IS_BETTER absolute { value: -0.01 } }
    }
    per_slice_thresholds {
      slicing_specs { feature_keys: ["carrier"] }
      slicing_specs {}
      threshold { value_threshold { lower_bound { value: 0.5 } } }
    }
  }
  metrics {
    class_name: "BinaryCrossentropy"
    threshold { change_threshold { direction: LOWER_IS_BETTER relative { value: 0.05 } } }
  }
  metrics {
    class_name: "AUC" config: '"curve": "PR", "name": "auc_pr"'
    threshold { value_threshold { lower_bound { value: 0 } } }
  }
  thresholds {
    key: "calibration"
    value { value_threshold { lower_bound { value: 0.9 } upper_bound { value: 1.1 } } }
  }
}
options { min_slice_size { value: 30 } compute_confidence_intervals { value: true } }
"""
YAML = """
model_specs: [{label_key: late}]
slicing_specs: [{}, {feature_keys: [carrier]}]
metrics_specs:
- metrics:
  - class_name: AUC
    threshold:
      value_threshold: {lower_bound: 0.6}
      change_threshold: {direction: HIGHER_IS_BETTER, absolute: -0.01}
"""


def test_a_text_proto_becomes_slices_and_gates(tmp_path: Path) -> None:
    file = tmp_path / "eval_config.pbtxt"
    file.write_text(TEXT, encoding="utf-8")

    found = read_eval_config(file)

    crossed = (
        "concat_ws(' x ', coalesce(cast(`carrier` as string), 'null'), coalesce(cast(`origin` as string), 'null'))"
    )
    assert found.slices == (
        Slicing("`carrier`", "carrier"),
        Slicing(crossed, "carrier x origin"),
        Slicing(crossed, "carrier x origin:AA x JFK", ("AA x JFK",)),
    )
    assert (found.label, found.weight, found.gates.min_examples) == ("`arrived late`", "`importance`", 30)
    every = ("all",)
    assert found.gates.thresholds == (
        Threshold("auc", at_least=0.6, gain_at_least=-0.01, slices=every, higher_is_better=True),
        Threshold("auc", at_least=0.5, slices=("carrier", "overall")),
        Threshold("log_loss", gain_share_at_least=-0.05, slices=every, higher_is_better=False),
        Threshold("pr_auc", at_least=0.0, slices=every),
        Threshold("calibration", at_least=0.9, at_most=1.1, slices=every),
    )


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_yaml_and_the_json_of_a_run_become_the_same(tmp_path: Path, *, is_wrapped: bool) -> None:
    file = tmp_path / "eval_config.yaml"
    inner = YAML if not is_wrapped else "eval_config:\n" + "".join(f"  {line}\n" for line in YAML.splitlines())
    file.write_text(inner, encoding="utf-8")

    found = read_eval_config(file)

    assert found.slices == (Slicing("`carrier`", "carrier"),)
    (threshold,) = found.gates.thresholds
    assert threshold == Threshold("auc", at_least=0.6, gain_at_least=-0.01, slices=("all",), higher_is_better=True)


BOUND = "threshold { value_threshold { lower_bound { value: 0.5 } } }"
BASELINE = 'model_specs { name: "old" is_baseline: true }'
CANDIDATE = 'model_specs { name: "new" }'
CHANGE = "threshold { change_threshold { absolute { value: 0.1 } } }"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metrics_specs { binarise {} }", 'has no field named "binarise"'),
        ("metrics_specs { binarize { class_ids { values: 1 } } }", "binarize cannot be kept here; give the metrics of"),
        (
            "metrics_specs { aggregate { micro_average: true } }",
            "aggregate cannot be kept here; give the metrics of the label as it is",
        ),
        (
            'slicing_specs { slice_keys_sql: "SELECT" }',
            "slice_keys_sql cannot be kept here; give feature_keys or feature_values, or add ms.Slicing(",
        ),
        (
            "cross_slicing_specs { baseline_spec {} }",
            "cross_slicing_specs cannot be kept here; use ms.Gap(metric, slicing, at_most=...)",
        ),
        (
            f'metrics_specs {{ metrics {{ class_name: "AUC" cross_slice_thresholds {{ {BOUND} }} }} }}',
            "cross_slice_thresholds cannot be kept here; use ms.Gap",
        ),
        (
            'model_specs { label_keys { key: "a" value: "y" } label_keys { key: "b" value: "z" } }',
            "label_keys has several columns, ['y', 'z'], and a gate judges one output; give label_key",
        ),
        (
            f'metrics_specs {{ metrics {{ class_name: "AUC" config: \'"curve": PR\' {BOUND} }} }}',
            "the config of metric AUC is not JSON",
        ),
        (
            'slicing_specs { feature_keys: "a" feature_values { key: "b" value: "1" } }',
            "a slice crosses all values of ['a'] with {'b': '1'}",
        ),
        (f'metrics_specs {{ metrics {{ class_name: "Flips" {BOUND} }} }}', "metric Flips has a threshold and is not"),
        (
            f'metrics_specs {{ metrics {{ class_name: "Recall" config: \'"thresholds": [0.3]\' {BOUND} }} }}',
            "metric Recall has the settings ['thresholds'], which cannot be kept here",
        ),
        (f'metrics_specs {{ metrics {{ class_name: "AUC" {CHANGE} }} }}', "change_threshold of auc has no direction"),
        (
            'metrics_specs { metrics { class_name: "AUC" per_slice_thresholds '
            f'{{ slicing_specs {{ feature_keys: "origin" }} {BOUND} }} }} }}',
            "thresholds name the slices ['origin'], which slicing_specs does not define; add them there",
        ),
        ("metrics_specs {", "Expected"),
        (
            'model_specs { preprocessing_function_names: "parse" }',
            "preprocessing_function_names ['parse'] cannot be kept here; a model here takes the table's own columns, "
            "and prepares them itself: delete the field, and let label_key",
        ),
        (f"{BASELINE} {CANDIDATE} {CANDIDATE}", "the candidates ['new', 'new'], and a gate judges one"),
        (
            f'{BASELINE} {CANDIDATE} metrics_specs {{ model_names: "old" }}',
            "has metrics of ['old'] alone, without the candidate ['new']",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "eval_config.pbtxt"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(EvalConfigError) as raised:
        read_eval_config(file)

    assert str(file) in str(raised.value)
    assert message in str(raised.value)


SLICE = """
model_specs { label_keys { key: "output" value: "late" } }
slicing_specs { feature_keys: ["sex", "age"] }
slicing_specs { feature_keys: ["sex"] }
slicing_specs { feature_values { key: "age" value: "20" } }
metrics_specs {
  metrics {
    class_name: "AUC"
    per_slice_thresholds {
      slicing_specs { feature_values { key: "sex" value: "female" } }
      slicing_specs { feature_keys: ["age", "sex"] }
      threshold { value_threshold { lower_bound { value: 0.7 } } }
    }
  }
  per_slice_thresholds {
    key: "calibration"
    value { thresholds {
      slicing_specs { feature_values { key: "age" value: "20" } }
      threshold { value_threshold { upper_bound { value: 2 } } }
    } }
  }
}
options { confidence_intervals { method: JACKKNIFE } }
"""


def test_a_threshold_holds_for_a_slice_that_is_given_by_its_features(tmp_path: Path) -> None:
    """TFMA matches a threshold's features with the slices of a division; numbers are equal as numbers."""
    file = tmp_path / "eval_config.pbtxt"
    file.write_text(SLICE, encoding="utf-16")

    found = read_eval_config(file)

    twenty = Slicing("if(try_cast(`age` as double) = 20.0D, '20', cast(`age` as string))", "age:20", ("20",))
    assert found.slices[1:] == (Slicing("`sex`", "sex"), twenty, Slicing("`sex`", "sex:female", ("female",)))
    assert found.slices[0].name == "age x sex"
    assert found.label == "`late`"
    assert [(one.metric, one.slices) for one in found.gates.thresholds] == [
        ("auc", ("sex:female", "age x sex")),
        ("calibration", ("age:20",)),
    ]


FORMS = {
    "as json_format writes it": {
        "evalConfig": {
            "modelSpecs": [{"labelKey": "late", "modelType": "tf_keras"}],
            "slicingSpecs": [{}, {"featureValues": {"origin": "JFK"}}],
            "metricsSpecs": [{"thresholds": {"auc": {"valueThreshold": {"lowerBound": 0.6}}}}],
            "options": {"minSliceSize": 1},
        },
        "version": "0.46.0",
    },
    "in the form of a text proto": {
        "model_specs": [{"label_key": "late"}],
        "slicing_specs": [{}, {"feature_values": [{"key": "origin", "value": "JFK"}]}, {"feature_values": {"day": 7}}],
        "metrics_specs": [
            {"thresholds": [{"key": "auc", "value": {"value_threshold": {"lower_bound": {"value": 0.6}}}}]}
        ],
        "options": {"min_slice_size": {"value": 1}},
    },
}


@pytest.mark.parametrize("document", FORMS.values(), ids=FORMS)
def test_json_is_known_by_its_content(tmp_path: Path, document: dict[str, object]) -> None:
    file = tmp_path / "eval_config"
    file.write_text(json.dumps(document, indent="\t"), encoding="utf-8-sig")

    found = read_eval_config(file)

    assert found.slices[0] == Slicing("`origin`", "origin:JFK", ("JFK",))
    assert [one.name for one in found.slices[1:]] in ([], ["day:7"])
    assert found.gates.thresholds == (Threshold("auc", at_least=0.6, slices=("all",)),)
    assert found.gates.min_examples == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.yaml", "- 1\n", "is not a mapping of fields to values"),
        ("none.yaml", "# nothing yet\n", "is empty; give it model_specs"),
        ("none.json", '{"evalConfig": {}}', "is empty; give it model_specs"),
        ("none.pbtxt", "", "is empty; give it model_specs"),
    ],
)
def test_a_document_that_is_no_configuration_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(EvalConfigError, match=f"{name}: {message}"):
        read_eval_config(tmp_path / name)
