"""Data quality: splits, leakage, profiles, validation, and the page of a dataset.

Findings and page come from the profile: counts of all rows from the conversion, and measures of a sample.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.data_pipelines.quality import profiling, raw_value_columns
    from mirrorspark.data_pipelines.quality.column_card import rate_name, rate_rows
    from mirrorspark.data_pipelines.quality.drift import NOISE_DEVIATIONS, measure_drift, stability_index
    from mirrorspark.data_pipelines.quality.findings import Finding, Limits, Report, Severity
    from mirrorspark.data_pipelines.quality.leakage import check_leakage
    from mirrorspark.data_pipelines.quality.missing_labels import without_null_labels
    from mirrorspark.data_pipelines.quality.page import PAGE_FILE, PageFacts, dataset_page
    from mirrorspark.data_pipelines.quality.profile import PROFILE_FILE, Bins, DatasetProfile
    from mirrorspark.data_pipelines.quality.split_rules import SPLIT_COLUMN, SplitError
    from mirrorspark.data_pipelines.quality.splits import default_split, random_split, time_split
    from mirrorspark.data_pipelines.quality.validation import validate
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "NOISE_DEVIATIONS",
    "PAGE_FILE",
    "PROFILE_FILE",
    "SPLIT_COLUMN",
    "Bins",
    "DatasetProfile",
    "Finding",
    "Limits",
    "PageFacts",
    "Report",
    "Severity",
    "SplitError",
    "check_leakage",
    "dataset_page",
    "default_split",
    "measure_drift",
    "profiling",
    "random_split",
    "rate_name",
    "rate_rows",
    "raw_value_columns",
    "stability_index",
    "time_split",
    "validate",
    "without_null_labels",
]
