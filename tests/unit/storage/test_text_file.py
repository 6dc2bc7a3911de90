"""H16: text files of any editor are read alike."""

from pathlib import Path

import pytest
import yaml

from mirrorspark.storage import load_yaml, read_text

TEXT = "label: späť\nkeys: id\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_a_text_is_the_same_in_every_encoding(tmp_path: Path, encoding: str, line_break: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_bytes(TEXT.replace("\n", line_break).encode(encoding))
    assert read_text(path) == TEXT


def test_another_encoding_is_refused_with_the_file_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_bytes("ü".encode("latin-1"))
    with pytest.raises(UnicodeDecodeError, match=r"some\.yaml is not UTF-8; save it with the encoding UTF-8"):
        read_text(path)


def test_a_key_of_yaml_is_there_once_but_may_override_a_merged_one() -> None:
    document = "usual: &usual {rate: 1, depth: 2}\nbuilt: &built {<<: *usual, rate: 3}\nagain: {<<: *built, depth: 4}"
    assert load_yaml(document)["again"] == {"rate": 3, "depth": 4}
    with pytest.raises(yaml.YAMLError, match=r"'depth' is there twice, in lines \[1, 2\]"):
        load_yaml("usual: {depth: 1,\n depth: 2}")
