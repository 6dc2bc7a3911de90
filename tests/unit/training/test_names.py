"""Names of runs, models, experiments and folders that are refused before anything starts."""

import re
from typing import Any

import pytest

from mirrorspark.training.configuration.config import ConfigError, TrainingConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a" * 300}, "has 300 bytes, and 128 are the most; use another name"),
        ({"name": "late."}, "name 'late.' begins with a blank, or ends with a blank or a dot; use another name"),
        ({"name": 5}, "name is 5; use a text"),
        ({"name": "con"}, "name 'con' is the name of a device on Windows"),
        ({"registered_model": "a\nb"}, "registered_model 'a\\nb' has a line break or another control character"),
        ({"registered_model": "ml:late"}, "registered_model 'ml:late' must be a name without '/' and ':'"),
        ({"registered_model": " "}, "registered_model ' ' is empty"),
        ({"experiment": "a\x1b[31mb"}, "experiment 'a\\x1b[31mb' has a line break or another control character"),
        ({"experiment": ""}, "experiment '' is empty; use another name"),
        ({"output": ""}, "output '' cannot be a folder: it is empty; give another one"),
        (
            {"output": "new/con/runs"},
            "output 'new/con/runs' cannot be a folder: its part 'con' is the name of a device",
        ),
        ({"output": "a\0b"}, "its part 'a\\x00b' has a line break or another control character; give another one"),
    ],
)
def test_a_name_that_cannot_be_one_everywhere_is_refused_with_the_reason(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        TrainingConfig(**{"name": "late"} | change)
