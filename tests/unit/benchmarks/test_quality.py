"""Protocols of the measurements of quality: training rows, queries, and the page."""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from benchmarks import quality
from benchmarks.cold_items import held_out_movies, rows_of
from benchmarks.quality_gowalla import Checkins, Training
from benchmarks.quality_hybrid import CONTENT, Part, candidates, difference, without_test_rows
from benchmarks.quality_sequences import batches, examples, hit_rate_and_ndcg, ranks, read_histories
from benchmarks.quality_tables import CALIBRATION_TITLES, FIGURES, METRICS, arguments, columns, titles
from benchmarks.report import print_cells, print_titles

PAGE = Path(__file__).parents[3] / "docs" / "quality.md"
RATINGS = pd.DataFrame({"userId": 1, "movieId": [10, 20, 30, 40, 50, 60], "timestamp": range(6)})
# Each of ten users has had four items in a row of thirty.
USERS = np.repeat(np.arange(10), 4)
ITEMS = USERS * 2 + np.tile(np.arange(4), 10)


def test_the_page_of_quality_has_the_tables_of_what_was_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sections that are not measured anew stay as they are."""
    for names in (("model", "AUC"), ("model", "seconds")):
        print_titles(*names)
        print("epoch 1 of 2")
        print_cells("plain", 0.9)
    said = capsys.readouterr().out.splitlines(keepends=True)
    monkeypatch.setattr(quality, "run", lambda command, folder: quality.Run(command, 3.2, said))
    written = tmp_path / "quality.md"
    measure = ["DATA", "--output", str(written), "--only"]
    for commit, sections in (("one", ["Gowalla", "Ratings"]), ("two", ["Ratings", "Adult"])):
        monkeypatch.setattr(quality, "conditions", lambda rounds, at=commit: {"commit": at, "rounds": "1"})
        assert quality.main([*measure, *sections]) == 0
    table = "| model | AUC |\n|---|---|\n| plain | 0.9 |\n\n| model | seconds |\n|---|---|\n| plain | 0.9 |"
    ratings = f"## Ratings\n\n`python -m benchmarks.quality_ratings DATA/ml_latest_small`, 3 s:\n\n{table}"
    page = written.read_text(encoding="utf-8")
    assert f"{ratings}\n\nMeasured: commit two.\n\n## Gowalla\n" in page
    assert [part.partition("\n")[0] for part in page.split("\n## ")] == ["# quality", "Adult", "Ratings", "Gowalla"]
    assert page.endswith("Measured: commit one.\n")


def training(layers: int, state: Path | None, **options: Any) -> Training:
    given = {"seed": 1, "rate": 0.05, "batch": 16, "choose": True, "state": state, "options": {"negatives": 5}}
    return Training(Checkins(USERS, ITEMS, (10, 30)), layers, argparse.Namespace(**given | options))


@pytest.mark.parametrize("layers", [pytest.param(0, marks=pytest.mark.full), 2])
def test_a_training_that_goes_on_has_learnt_the_same(layers: int, tmp_path: Path) -> None:
    whole, first = training(layers, None), training(layers, tmp_path)
    for _ in range(2):
        whole.epoch()
    first.epoch()
    second = training(layers, tmp_path)
    assert second.epochs == 1
    second.epoch()
    assert second.epochs == whole.epochs == 2
    for mine, of_whole in zip(second.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, of_whole)
    with pytest.raises(SystemExit, match=r"has a training with options, batch and rate \(.*, 0.05\), not .*, 0.01\)"):
        training(layers, tmp_path, rate=0.01)


def test_items_that_a_user_has_had_are_not_listed() -> None:
    """Scores fall with the item's number. User 1 has had 2 to 5, so of the 20 best 0 and 1 are there, and then 6."""
    some = training(0, None, options={"negatives": 5, "cosine": False})
    falling = np.linspace(1, 0, 32)[:, np.newaxis] * np.ones((1, 64))
    some.model.candidate_tower.set_weights([falling])
    weights = [np.abs(values) for values in some.model.query_tower.get_weights()]
    some.model.query_tower.set_weights(weights)
    assert some.measured(np.array([[1, 1], [0, 6]]))["recall"] == 1
    assert some.measured(np.array([[1, 1], [2, 29]]))["recall"] == 0


def test_held_out_movies_are_in_no_history_and_only_asked_for() -> None:
    rows = rows_of(RATINGS, {30}).set_index("movie_id")
    assert rows["split"].to_dict() == {"20": "train", "30": "test", "40": "train", "50": "validation", "60": "test"}
    assert rows["is_cold"].to_dict() == {"20": False, "30": True, "40": False, "50": False, "60": False}
    assert rows.loc["60", "recent_movies"] == rows.loc["60", "watched"] == ["10", "20", "40", "50"]
    assert rows.loc["30", "watched"] == ["10", "20"]


def test_several_last_movies_of_a_user_can_be_asked_for() -> None:
    rows = rows_of(RATINGS, set(), tests=3).set_index("movie_id")
    assert rows["split"].to_dict() == {"20": "train", "30": "validation", "40": "test", "50": "test", "60": "test"}
    assert rows.loc["50", "recent_movies"] == ["10", "20", "30", "40"]


def test_every_blend_that_is_compared_has_the_content_model() -> None:
    """The best two are of one model, so the best parts differ from the best of each model."""
    order = [Part("ease", 5), Part("ease", 10), Part(CONTENT), Part("als", 5), Part("als", 10), Part("item_knn", 5)]
    content, first, second, als, knn = order[2], order[0], order[1], order[3], order[5]
    assert candidates(order) == [
        (first, content),
        (first, second, content),
        (first, second, als, content),
        (first, als, content),
        (first, als, knn, content),
    ]


def test_rows_of_a_user_count_together_in_the_error_of_a_difference() -> None:
    """The differences of the two users are 1 above and 1 below the mean of 0.5, so the error is sqrt(2) / 4."""
    values, others, users = np.array([1.0, 1.0, 0.0, 0.0]), np.zeros(4), np.array([7, 7, 9, 9])
    assert difference(values, others, users) == "+0.5000 ± 0.3536"
    assert difference(values, others, np.arange(4)) == "+0.5000 ± 0.2500"


def test_no_test_row_of_either_table_is_looked_at_to_choose() -> None:
    movies = pd.Series(range(10, 160, 10))
    _, held_out = held_out_movies(RATINGS, movies)
    assert held_out == {30}
    assert without_test_rows(RATINGS, movies)["movieId"].tolist() == [10, 20, 40, 50]


def test_items_are_numbered_by_how_often_training_has_them(tmp_path: Path) -> None:
    """Without each user's last two, item 9 is there twice and item 7 once; 8 and 5 are never."""
    (tmp_path / "beauty.txt").write_text("1 9 7 8 5\n2 9 8 5\n")
    fitted, users = read_histories(tmp_path / "beauty.txt")
    assert fitted.vocabularies["item"].tokens.to_pylist()[:2] == ["9", "7"]
    assert fitted.vocabularies["item"].counts.to_pylist() == [2, 1, 0, 0]
    assert [user[0] for user in users] == [2, 2]


def test_training_sees_neither_of_the_last_two_items() -> None:
    users = [np.array([2, 3, 4, 5, 6]), np.array([7, 8, 9, 10])]
    histories, items = examples(users, every_item=False)
    assert histories[:, :3].tolist() == [[2, 3, 0], [7, 0, 0]]
    assert items.tolist() == [4, 8]
    histories, items = examples(users, every_item=True)
    assert histories[:, :3].tolist() == [[2, 0, 0], [2, 3, 0], [7, 0, 0]]
    assert items.tolist() == [3, 4, 8]
    chosen = list(batches(histories, items, 2, np.random.default_rng(1)))
    assert sorted(item for given, _, _ in chosen for item in given["item"]) == [3, 4, 8]


def test_an_item_is_ranked_among_all_that_the_user_has_not_had() -> None:
    """Scores fall with the id. Only item 3 is before the test item 6, and before the validation item 4."""
    embeddings = np.array([[-float(number)] for number in range(8)])
    model = SimpleNamespace(candidate_tower=SimpleNamespace(get_weights=lambda: [embeddings]))
    architecture = SimpleNamespace(predict=lambda _, inputs: tf.ones([len(inputs["history"]), 1], tf.float64))
    users = [np.array([2, 5, 4, 6])]
    assert ranks(architecture, model, users, back=1).tolist() == [1]
    assert ranks(architecture, model, users, back=2).tolist() == [1]


def test_hit_rate_and_ndcg_of_one_item_per_user() -> None:
    """The gain is 1 at the top and 1/2 in the third place; the eleventh place does not count as a hit."""
    assert hit_rate_and_ndcg(np.array([0, 2, 10])) == (pytest.approx(2 / 3), pytest.approx(0.5))


@pytest.mark.parametrize("names", [titles(columns("adult", choose=False)), CALIBRATION_TITLES])
def test_the_columns_are_those_of_the_page(names: list[str]) -> None:
    assert f"| {' | '.join(names)} |" in PAGE.read_text(encoding="utf-8").splitlines()


def test_settings_are_chosen_without_a_figure_of_test_rows() -> None:
    for of_set in FIGURES:
        assert columns(of_set, choose=True) == [("validation", metric) for metric in METRICS]


def test_only_the_set_that_is_in_a_folder_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments(["--set", "flights"]).folder is None
    assert arguments(["adult"]).folder == Path("adult")
    with pytest.raises(SystemExit):
        arguments([])
    assert "--set adult needs the folder of adult.data and adult.test" in capsys.readouterr().err
