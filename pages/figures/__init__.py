"""Figures drawn by matplotlib: each function takes values and returns one figure.

Text is drawn as it is, dollar signs included.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.pages.figures import style
    from mirrorspark.pages.figures.by_date import lines_over_time, over_time, shares_over_time
    from mirrorspark.pages.figures.calibration import calibration_bins, calibration_curve
    from mirrorspark.pages.figures.classes import class_quality, confusion_matrix
    from mirrorspark.pages.figures.explanation import dependence_chart, importance_chart
    from mirrorspark.pages.figures.image import figure_of_image
    from mirrorspark.pages.figures.inputs import binary_inputs
    from mirrorspark.pages.figures.lift import lift_chart
    from mirrorspark.pages.figures.literal import make_literal
    from mirrorspark.pages.figures.markup import figure_svg, has_page_colours
    from mirrorspark.pages.figures.ranking import recall_at_k_curve
    from mirrorspark.pages.figures.regression import predicted_and_actual, residuals_by_prediction
    from mirrorspark.pages.figures.scores import score_histogram
    from mirrorspark.pages.figures.slices import slice_changes
    from mirrorspark.pages.figures.style import PANEL_WIDTH_INCHES
    from mirrorspark.pages.figures.threshold_curves import precision_recall_curve, roc_curve
    from mirrorspark.pages.figures.training_curves import learning_curves, run_curves
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "PANEL_WIDTH_INCHES",
    "binary_inputs",
    "calibration_bins",
    "calibration_curve",
    "class_quality",
    "confusion_matrix",
    "dependence_chart",
    "figure_of_image",
    "figure_svg",
    "has_page_colours",
    "importance_chart",
    "learning_curves",
    "lift_chart",
    "lines_over_time",
    "make_literal",
    "over_time",
    "precision_recall_curve",
    "predicted_and_actual",
    "recall_at_k_curve",
    "residuals_by_prediction",
    "roc_curve",
    "run_curves",
    "score_histogram",
    "shares_over_time",
    "slice_changes",
    "style",
]
