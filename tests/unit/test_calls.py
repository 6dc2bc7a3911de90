"""The tool that shows which modules a call enters counts calls, not imports."""

from mirrorspark.data_pipelines.features.names import repeated_names
from mirrorspark.storage.near_names import meant
from tools.calls import climbs, traced


def test_modules_come_in_the_order_in_which_they_are_entered_with_their_calls() -> None:
    def call() -> None:
        repeated_names([])
        meant("x", [])
        repeated_names([])

    entered = traced(call)
    names, near_names, *_ = entered
    assert (names.rpartition(".")[2], near_names.rpartition(".")[2]) == ("names", "near_names")
    assert entered[names]["repeated_names"] == 2
    assert traced(lambda: __import__("mirrorspark.scoring.plan")) == {}


def test_a_climb_is_a_module_in_a_higher_layer_than_the_one_before_it() -> None:
    way = ["training.run", "models.catalog", "training.pipeline", "recipes", "storage.paths", "callbacks.backup"]
    assert climbs(way) == [False, False, True, False, False, True]
