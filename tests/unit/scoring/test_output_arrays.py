"""Outputs become Arrow's arrays of the described types; invalid text is an error."""

from pathlib import Path

import pyarrow as pa
import pytest

from mirrorspark.scoring.backends.protocol import ModelOutputError
from mirrorspark.scoring.model.loading.loaded import LoadedModel
from mirrorspark.scoring.package import package_model
from tests.unit.scoring.other_models import LINEAR

# The score of a box decides which text it gets; one is in Latin-1, which the other function decodes.
LATIN = """
import numpy as np

def postprocess(outputs):
    size = np.where(outputs["score"] > 0.5, b"gr\\xf6\\xdfer", b"kleiner").astype(object)
    return {"size": size, "sizes": np.column_stack([np.full(len(size), b"kleiner", object), size])}
"""
_RETURN = "size = np.array([{} for text in size], object)\n    return"
DECODED = LATIN.replace("return", _RETURN.format("text.decode('latin-1')"))
# Python's text of bytes that it could not decode.
ESCAPED = LATIN.replace("return", _RETURN.format("text.decode(errors='surrogateescape')"))


def package_texts(folder: Path, source: str, output: str) -> Path:
    folder.mkdir()
    (folder / "code.py").write_text(source)
    return package_model(LINEAR, folder / "model", hooks=folder / "code.py", outputs={output: output})


def test_a_text_that_is_not_utf_8_is_told_with_its_output_and_row_and_can_be_decoded(tmp_path: Path) -> None:
    """S4: as a value, in a list, and as text that Python holds and nobody else can."""
    rows = pa.table({"height": [-9.0, -9.0, 9.0], "width": [0.0] * 3, "depth": [0.0] * 3})
    for name, source, output, shown in (
        ("latin", LATIN, "size", r"b'gr\\xf6\\xdfer'"),
        ("list", LATIN, "sizes", r"b'gr\\xf6\\xdfer'"),
        ("escaped", ESCAPED, "size", r"'gr\\udcf6\\udcdfer'"),
    ):
        model = LoadedModel(package_texts(tmp_path / name, source, output))
        expected = rf"output '{output}' is not UTF-8 in row 2 \(of 3 scored .*\): {shown}; .*decode it in a postprocess"
        with pytest.raises(ModelOutputError, match=expected):
            model.score_arrow(rows)
        assert len(model.score_arrow(rows.slice(0, 2))[output]) == 2
    decoded = LoadedModel(package_texts(tmp_path / "decoded", DECODED, "size"))
    assert decoded.score_arrow(rows)["size"].to_pylist() == ["kleiner", "kleiner", "größer"]
