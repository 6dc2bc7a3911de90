"""The recipe that the documentation shows as an example runs, on the tables that it describes."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mirrorspark.data_pipelines.conversion import convert
from mirrorspark.data_pipelines.tables import find_tables, query, register_tables
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.configuration.recipe import load_recipe

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
FIRST_DAY = datetime(2024, 9, 1)


@pytest.mark.timeout(180)
def test_example_recipe_of_the_documentation_becomes_a_dataset(spark: "SparkSession", tmp_path: Path) -> None:
    write_recipe(tmp_path / "shop-recipe")
    write_tables(tmp_path / "shop")
    config = RunConfig(**load_recipe(str(tmp_path / "shop-recipe")))

    files = find_tables(tmp_path / "shop", config.tables)
    register_tables(spark, files, config.tables, unpacked=tmp_path / "unpacked")
    dataset = convert(query(spark, config.sql, "table.sql"), config.spec, tmp_path / "dataset")

    # Customers 1 to 10 order every 20 days, 11 to 20 every 40: orders from September 1 until December 1 count.
    assert {split: dataset.manifest.rows(split) for split in dataset.manifest.splits} == {
        "train": 10 * 2 + 10 * 1,
        "validation": 10 * 2 + 10 * 1,
        "test": 10 * 1 + 10 * 1,
    }
    # One who orders every 20 days always orders again within 30 days.
    assert dataset.manifest.statistics["label"] == {
        "train_positive": 20,
        "validation_positive": 20,
        "test_positive": 10,
    }


def write_recipe(folder: Path) -> None:
    folder.mkdir()
    text = PAGE.read_text(encoding="utf-8")
    for name, language in (("recipe.yaml", "yaml"), ("table.sql", "sql")):
        # The first of its language; later ones are parts of other recipes.
        content = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[0]
        (folder / name).write_text(content, encoding="utf-8")


def write_tables(folder: Path) -> None:
    """Write 20 customers with six orders each, every 20 or every 40 days."""
    folder.mkdir()
    customers = ["customer_id,country,born", *(f"{customer},fr,1980" for customer in range(1, 21))]
    orders = ["order_id,customer_id,ordered_at,product,amount"]
    for customer in range(1, 21):
        interval = timedelta(days=20 if customer <= 10 else 40)
        for number in range(6):
            day = FIRST_DAY + number * interval
            orders.append(f"{len(orders)},{customer},{day:%Y-%m-%d %H:%M:%S},tea,{number + 0.5}")
    (folder / "customers.csv").write_text("\n".join(customers) + "\n", encoding="utf-8")
    (folder / "orders.csv").write_text("\n".join(orders) + "\n", encoding="utf-8")
