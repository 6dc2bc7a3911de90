"""A session whose driver has four GPUs by its discovery script, for the distributor's own test of its local mode.

Usage: local_mode_gpus.py TEST_FILE FOLDER
"""

import sys
from pathlib import Path

from pyspark.sql import SparkSession

from mirrorspark.training.job.readiness.checks import PreflightError
from tests.cluster import distributor


def main(file: Path, folder: Path) -> None:
    """Run the test with its own parameters; then ask for more GPUs than there are."""
    script = folder / "gpus.sh"
    script.write_text("""echo '{"name": "gpu", "addresses": ["0", "1", "2", "3"]}'\n""")
    script.chmod(0o755)
    settings = {"spark.driver.resource.gpu.amount": 4, "spark.driver.resource.gpu.discoveryScript": script}
    builder = SparkSession.builder.master("local[2]")
    for name, value in settings.items():
        builder = builder.config(name, str(value))
    spark = builder.getOrCreate()
    test = distributor.program(file, has_gpus=True, spark=spark, output=folder / "output")["test_local_run"]
    for slots, devices in ((1, None), (3, "10,11,12,13")):
        test(2, 4, slots, devices)
        print(f"{slots} of {devices}", flush=True)
    try:
        test(2, 4, 5, None)
    except PreflightError as error:
        print(error, flush=True)
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
