"""Every field is a flag of its name; flags override a recipe; errors take one line."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirrorspark.data_pipelines.features.kinds import FeatureSpecError
from mirrorspark.models.settings import ModelSettingsError
from mirrorspark.training.configuration.command_line import flag_groups, parse, summary_file
from mirrorspark.training.configuration.config import ConfigError, RunConfig
from mirrorspark.training.configuration.fields import help_texts
from mirrorspark.training.configuration.recipe import RECIPE_FILE, SQL_FILE


def test_without_flags_the_flights_recipe_runs_on_one_worker() -> None:
    config = parse([])
    assert (config.recipe, config.workers, config.resume, config.dry_run) == ("flights", 1, True, False)
    assert (config.model["name"], config.label, config.data) == ("multi_field", "late", None)


def test_every_documented_flag_is_read() -> None:
    config = parse(
        [
            *("--workers", "2"),
            *("--recipe", "movielens"),
            *("--data", "some/folder"),
            *("--output", "some/output"),
            *("--tracking-uri", "http://127.0.0.1:5000"),
            *("--master", "spark://host:7077"),
            *("--epochs", "3"),
            "--no-resume",
            "--dry-run",
            *("--summary", "summary.json"),
        ]
    )
    assert (config.workers, config.recipe, config.data, config.output) == (2, "movielens", "some/folder", "some/output")
    assert (config.tracking_uri, config.master) == ("http://127.0.0.1:5000", "spark://host:7077")
    assert (config.epochs, config.resume, config.dry_run) == (3, False, True)
    assert config.summary == "summary.json"


def test_flags_stand_over_the_recipe_and_the_recipe_over_defaults(recipe: Path) -> None:
    knobs = yaml.safe_load((recipe / RECIPE_FILE).read_text())
    (recipe / RECIPE_FILE).write_text(yaml.safe_dump(knobs | {"epochs": 7, "patience": 2}))
    config = parse(["--recipe", str(recipe), "--epochs", "9"])
    assert (config.epochs, config.patience, config.seed) == (9, 2, 1)


def test_a_default_stands_in_the_configuration_alone(recipe: Path, knobs: dict[str, Any]) -> None:
    config = parse(["--recipe", str(recipe)])
    assert config == RunConfig(recipe=str(recipe), sql="SELECT * FROM rides", **knobs)


def test_a_flag_has_dashes_where_its_field_has_underscores() -> None:
    config = parse(["--global-batch-size=512", "--learning-rate", "0.5", "--steps-per-execution=2", "--max-restarts=0"])
    assert (config.global_batch_size, config.learning_rate) == (512, 0.5)
    assert (config.steps_per_execution, config.max_restarts) == (2, 0)


@pytest.mark.parametrize("arguments", [["--model.embedding_dim=16"], ["--model.embedding_dim", "16"]])
def test_one_setting_of_the_model_can_be_changed_and_the_others_stay(arguments: list[str]) -> None:
    before = parse([]).model
    assert parse(arguments).model == before | {"embedding_dim": 16}


def test_another_model_leaves_the_recipes_settings_of_its_own_behind() -> None:
    assert parse(["--recipe=movielens", "--model.name=ease", "--model.l2=100"]).model == {"name": "ease", "l2": 100}
    kept = {"name": "youtube_dnn", "embedding_dim": 32, "hidden_units": [64], "dropout": 0.2}
    assert parse(["--recipe=movielens", "--model.name=youtube_dnn"]).model == kept
    with pytest.raises(ModelSettingsError, match=r"model 'ease' has no setting \['dropout'\]"):
        parse(["--recipe=movielens", "--model.name=ease", "--model.dropout=0.5"])


def test_settings_of_the_model_can_be_lists() -> None:
    assert parse(["--model.hidden_units=[32, 16]"]).model["hidden_units"] == [32, 16]


def test_a_baseline_is_a_name_or_a_list_of_names_and_settings() -> None:
    several = parse(["--recipe=movielens", "--baseline=[popularity, {name: ease, last_items: 15}]"])
    assert several.baseline == ["popularity", {"name": "ease", "last_items": 15}]
    assert parse(["--recipe=movielens", "--baseline=item_knn"]).baseline == "item_knn"
    with pytest.raises(ConfigError, match=r"baseline 'eas' is unknown .did you mean 'ease'.*use one of"):
        parse(["--recipe=movielens", "--baseline=eas"])


def test_classes_are_named_no_and_yes_as_documented(recipe: Path, knobs: dict[str, Any]) -> None:
    """YAML 1.1 reads them as false and true."""
    label = {"label": {"name": "late", "positive": "yes"}}
    (recipe / RECIPE_FILE).write_text(f"{yaml.safe_dump(knobs | label)}class_weights: {{no: 2, yes: 7}}\nresume: no\n")
    arguments = ["--recipe", str(recipe)]
    config = parse(arguments)
    assert (config.class_weights, config.resume) == ({"no": 2, "yes": 7}, False)
    for given in (["--class-weights", "{no: 1, yes: 5}"], ["--class-weights.no=1", "--class-weights.yes", "5"]):
        assert parse([*arguments, *given]).class_weights == {"no": 1, "yes": 5}
    assert parse([*arguments, "--class-weights", "balanced"]).class_weights == "balanced"
    several = {"label": {"name": "late", "kind": "multi_class"}}
    (recipe / RECIPE_FILE).write_text(f"{yaml.safe_dump(knobs | several)}costs: {{no: {{yes: 10}}}}\n")
    assert parse(arguments).costs == {"no": {"yes": 10}}
    assert parse([*arguments, "--costs", "{maybe: {yes: 3}}"]).costs == {"maybe": {"yes": 3}}
    numbers = ["--class-weights", "{true: 5, 0: 1}", "--model.dropout=1e-3"]
    assert parse(numbers).class_weights == {"true": 5, "0": 1}


def test_text_that_looks_like_a_number_stays_text() -> None:
    config = parse(["--data", "2013", "--experiment", "7"])
    assert (config.data, config.experiment) == ("2013", "7")


def test_a_recipe_is_found_by_its_path(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recipe.parent)
    for given in (str(recipe), "rides", "./rides/"):
        assert parse([f"--recipe={given}"]).name == "rides"


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        (
            ["--recipe", "flight"],
            ConfigError,
            ["recipe 'flight' is unknown", "'flights', 'movielens', 'movielens_items'", "folder"],
        ),
        (["--recipe", "/nonexistent/recipe"], ConfigError, ["recipe '/nonexistent/recipe' is unknown"]),
        (["--recipe"], ConfigError, ["--recipe", "expected one argument"]),
        (["--recipe", "--workers", "2"], ConfigError, ["--recipe", "expected one argument"]),
        (["--recipe", ""], ConfigError, ["--recipe is empty; give a name, or leave it out"]),
        (["--name="], ConfigError, ["--name is empty; give a name, or leave it out"]),
        (["--name", "a\nb"], ConfigError, ["name 'a\\nb' has a line break"]),
        (["--worker", "2"], ConfigError, ["unrecognized arguments: --worker 2; did you mean --workers?", "--help"]),
        (["--epcohs=3", "--xyzzy"], ConfigError, ["--xyzzy; did you mean --epochs?"]),
        (["--global_batch_size=3"], ConfigError, ["unrecognized arguments: --global_batch_size"]),
        (["movielens"], ConfigError, ["unrecognized arguments: movielens"]),
        (["--workers", "two"], ConfigError, ["workers 'two' is not a number of workers", "2:4"]),
        (["--workers", "4:2"], ConfigError, ["workers 4:2 ends before it begins; use 2:4"]),
        (["--learning-rate=fast"], ConfigError, ["learning_rate is 'fast'; use a number (see --help)"]),
        (["--clip-norm=x"], ConfigError, ["clip_norm is 'x'; use a number"]),
        (["--epochs=2.5"], ConfigError, ["epochs is '2.5'; use a whole number"]),
        (
            ["--strategy=rings"],
            ConfigError,
            ["strategy 'rings' is unknown (did you mean 'ring'?); use one of ['ring', "],
        ),
        (["--mode=up"], ConfigError, ["mode 'up' is unknown; use one of ['min', 'max']"]),
        (
            ["--optimizer=adamax"],
            ConfigError,
            ["optimizer 'adamax' is unknown (did you mean 'adam'?); use one of ['adam', 'adamw', 'adagrad', "],
        ),
        (["--resume=false"], ConfigError, ["--resume/--no-resume"]),
        (["--workers=0"], ConfigError, ["workers 0 begins below 1; use 1 or more"]),
        (
            ["--workers=3", "--global-batch-size=2048"],
            ConfigError,
            ["global_batch_size 2048 does not divide among 3 workers; use a multiple of 3"],
        ),
        (["--model=multi_field"], ConfigError, ["model is", "--model.name multi_field"]),
        (["--model.name=5"], ConfigError, ["model.name must be a string, not 5", "'multi_field'"]),
        (["--seed=-1"], ConfigError, ["seed is -1; use 0 or more"]),
        (["--model.name=nope"], ModelSettingsError, ["model 'nope' is unknown", "'multi_field', 'multi_label'"]),
        (["--model.width=3"], ModelSettingsError, ["has no setting ['width']", "embedding_dim"]),
        (["--model.embedding_dim=wide"], ModelSettingsError, ["embedding_dim is 'wide'", "int"]),
        (["--features.distance.kind=numbers"], FeatureSpecError, ["feature 'distance': kind 'numbers' is unknown"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and str(value[0]).startswith("-") else "",
)
def test_bad_usage_is_reported_in_one_line(arguments: list[str], error: type[Exception], parts: list[str]) -> None:
    with pytest.raises(error) as raised:
        parse(arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["--no-such-flag", "--summary", "a/b.json"], "a/b.json"),
        (["--workers=two", "--summary=a/b.json", "--epochs"], "a/b.json"),
        (["--workers=two"], None),
        (["--summary"], None),
        (["--summary", "--workers=two"], None),
    ],
)
def test_the_summary_file_is_known_from_arguments_that_make_no_sense(arguments: list[str], file: str | None) -> None:
    assert summary_file(arguments) == file


@pytest.mark.parametrize("value", ["many", 2.5, {}])
def test_a_recipe_with_a_value_of_the_wrong_type_is_refused(recipe: Path, value: Any) -> None:
    knobs = yaml.safe_load((recipe / RECIPE_FILE).read_text())
    (recipe / RECIPE_FILE).write_text(yaml.safe_dump(knobs | {"epochs": value}))
    with pytest.raises(ConfigError, match=r"rides.*epochs"):
        parse(["--recipe", str(recipe)])


@pytest.mark.parametrize("leaning", [r"^(\w+ ){0,3}it\b", r"\bthat mean\b", r"\bmay\.$"])
def test_the_text_of_a_flag_can_be_read_without_that_of_the_flag_before(leaning: str) -> None:
    assert [name for name, text in help_texts().items() if re.search(leaning, text)] == []


def test_help_lists_every_flag_once_by_subject_the_most_used_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as raised:
        parse(["--help"])
    assert raised.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    shown: dict[str, list[str]] = {}
    for line in lines[lines.index("most used:") :]:
        if line.endswith(":") and not line.startswith(" "):
            shown[line[:-1]] = []
        elif found := re.match(r"  --([a-z-]+)", line):
            shown[list(shown)[-1]].append(found[1].replace("-", "_"))
    assert shown == {title: list(names) for title, names in flag_groups().items()}
    assert [len(shown["most used"]), len(shown)] == [10, 8]
    assert sorted(name for names in shown.values() for name in names) == sorted(
        field.name for field in dataclasses.fields(RunConfig)
    )
    assert len(lines) < 145


def test_help_says_what_a_flag_does_and_its_default_in_this_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recipe: Path
) -> None:
    with (recipe / RECIPE_FILE).open("a") as file:
        file.write("epochs: 7\n")
    (recipe / SQL_FILE).write_text("SELECT ride_id, town, distance, late, split FROM rides")
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parse(["--help", "--recipe", str(recipe)])
    page = capsys.readouterr().out
    texts = " ".join(page.split())
    assert [name for name, text in help_texts().items() if text not in texts] == []
    assert "--epochs N Most passes over the training split (default: 7)" in texts
    assert "--optimizer adam|adamw|adagrad|lazy_adam|lion|sgd" in texts
    assert "SELECT" not in page
    assert "<function" not in page
    assert "--model.embedding_dim 16" in page
