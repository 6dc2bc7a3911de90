"""S16: TFRecord files are scored with the options that tables are scored with."""

import inspect

from mirrorspark.scoring.batch import score
from mirrorspark.scoring.input.tfrecords import score_tfrecords

# Other columns of the files are never read, they are not Parquet files, and models trained here bring no code. Only a
# table in memory needs no keys, and no session.
OF_TABLES_ALONE = {"table", "extra_columns", "reader", "trust", "keys", "spark"}


def test_the_options_have_the_names_and_defaults_that_they_have_for_tables() -> None:
    of_tables, of_files = (inspect.signature(function).parameters for function in (score, score_tfrecords))
    shared = set(of_tables) - OF_TABLES_ALONE
    assert set(of_files) == shared | {"spark", "paths", "keys", "on_damage"}
    assert {name: of_files[name].default for name in shared} == {name: of_tables[name].default for name in shared}
