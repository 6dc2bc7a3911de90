"""Does `plan_fleet` predict how long `run_fleet` takes, at three sizes of the table?

A plan is measured on a sample, for the cores of this machine, and the run takes its sizes. The models are those of the
benchmark `fleet`: each reads 100 of 2,000 columns, and the outputs are packed in lists.
"""

import time
from statistics import median

from benchmarks import spark_work
from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.fleet import MODELS, Coefficients, write_wide
from benchmarks.measure import Mark
from benchmarks.report import Report, Table, significant

SHARES = (10, 3, 1)
ERROR_MARK = 0.2
LAYOUT = "packed"


def run(options: Options) -> Report:
    """Plan and run a tenth, a third and all of the rows."""
    from mirrorspark.fleet.runs.planning.probe import plan_fleet
    from mirrorspark.fleet.runs.run import run_fleet

    session, fleet = spark_work.session(), Coefficients.of(MODELS).fleet()
    lines, errors = [], []
    for share in SHARES:
        rows = max(1, options.rows // share)
        folder = options.scratch / f"wide-{share}"
        write_wide(folder, rows)
        plan = plan_fleet(session, fleet, folder, keys="key", cores=spark_work.SLOTS, layout=LAYOUT)
        seconds = []
        for number in range(options.rounds):
            begin = time.perf_counter()
            run_fleet(
                session,
                fleet,
                folder,
                options.scratch / f"scores-{share}-{number}",
                keys="key",
                layout=LAYOUT,
                models_per_microbatch=plan.models_per_microbatch,
                rows_per_microbatch=plan.rows_per_microbatch,
                at_once=plan.at_once,
            )
            seconds.append(time.perf_counter() - begin)
        took, predicted = median(seconds), plan.hours * 3600
        errors.append(abs(predicted / took - 1))
        parts = [plan.read_core_hours, plan.compute_core_hours, plan.write_core_hours]
        starts = 3600 * (plan.start_hours + plan.waiting_hours)
        of_parts = " / ".join(f"{part / sum(parts):.0%}" for part in parts)
        cells = (
            f"{rows:,}",
            f"{predicted:.1f}",
            f"{starts:.1f}",
            f"{took:.1f}",
            f"{predicted / took - 1:+.0%}",
            of_parts,
        )
        lines.append((*cells, plan.bottleneck, significant(plan.work.inferences / took / spark_work.SLOTS / 1e6)))
    session.stop()
    columns = ("rows", "predicted, s", "starts, s", "measured, s", "difference", "read / compute / write", "bottleneck")
    table = Table(f"{MODELS} models, {spark_work.SLOTS} cores", (*columns, "M inferences/s/core"), tuple(lines))
    mark = Mark("largest difference of prediction and measurement", max(errors), ERROR_MARK, "at most")
    return Report(BENCHMARK.name, BENCHMARK.question, (table,), (mark,))


BENCHMARK = Benchmark("fleet_plan", question_of(__doc__), 200_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
