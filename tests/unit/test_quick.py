"""The choice of tests for what has changed: the nearest first, and only unit tests."""

from pathlib import Path

from tools.quick import imports, nearest

SOURCES = {
    "ring/__init__.py": "",
    "ring/link.py": "",
    "ring/sums.py": "from mirrorspark.ring import link\n",
    "jobs/job.py": "def run():\n    from mirrorspark.ring.sums import add\n",
    "docs/page.py": "import os\n",
    "tests/unit/ring/conftest.py": "",
    "tests/unit/ring/test_link.py": "from mirrorspark.ring import link as one\n",
    "tests/unit/ring/test_other.py": "from mirrorspark.ring import (\n    link,\n    sums,\n)\n",
    "tests/unit/ring/test_sums.py": "from mirrorspark.ring.sums import add\n",
    "tests/unit/jobs/test_job.py": "import mirrorspark.jobs.job\n",
    "tests/unit/test_documentation.py": "import os\n",
    "tests/cluster/test_ring.py": "from mirrorspark.ring import link\n",
}


def test_the_tests_of_a_module_come_before_those_of_its_folder_and_of_the_folders_that_import_it(
    tmp_path: Path,
) -> None:
    for file, source in SOURCES.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(source)
    imported = imports(tmp_path)
    link, other, sums, job = (
        f"tests/unit/{name}.py" for name in ("ring/test_link", "ring/test_other", "ring/test_sums", "jobs/test_job")
    )
    assert nearest(["ring/link.py"], imported) == [link, other, sums, job]
    assert nearest(["ring/link.txt"], imported) == [link, other, sums, job]
    assert nearest(["jobs/job.py"], imported) == [job]
    assert nearest(["tests/unit/ring/test_sums.py"], imported) == [sums]
    assert nearest(["tests/unit/ring/conftest.py"], imported) == [link, other, sums]
    assert nearest(["README.md", "setup.cfg"], imported) == ["tests/unit/test_documentation.py"]
    assert nearest(["tests/cluster/test_ring.py"], imported) == []
