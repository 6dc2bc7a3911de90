"""Runs all benchmarks of scoring one after the other, each in a process of its own, and lists their marks."""

from benchmarks.suite import Suite, main

SUITE = Suite(
    name="scoring",
    title="Benchmarks of scoring",
    benchmarks=(
        "score_files",
        "score_djl",
        "score_mlflow",
        "score_sparse",
        "score_ragged",
        "score_growth",
        "score_start",
        "score_row",
        "serve_online",
        "serve_lists",
        "score_parity",
        "recommend",
        "rerank",
        "lookup_precomputed",
        "fleet",
        "fleet_growth",
        "fleet_plan",
    ),
    page="scoring.md",
    command="python -m benchmarks.scoring",
)

if __name__ == "__main__":
    main(SUITE, __doc__)
