"""The benchmark of hybrids: which rows are asked for, which blends are compared, and how sure a difference is."""

import numpy as np
import pandas as pd

from benchmarks.cold_items import held_out_movies, rows_of
from benchmarks.quality_hybrid import CONTENT, Part, candidates, difference, without_test_rows

RATINGS = pd.DataFrame({"userId": 1, "movieId": [10, 20, 30, 40, 50, 60], "timestamp": range(6)})


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
