"""Each plot shows the right numbers, labels its axes, and refuses input that has nothing to show."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from sklearn import metrics
from sklearn.calibration import calibration_curve as sklearn_calibration_curve

from mirrorspark.pages.blocks import figure_html
from mirrorspark.pages.figures import style
from mirrorspark.pages.figures.by_date import lines_over_time, over_time, shares_over_time
from mirrorspark.pages.figures.calibration import calibration_bins, calibration_curve, compact_count, wilson_interval
from mirrorspark.pages.figures.classes import class_quality, confusion_matrix
from mirrorspark.pages.figures.explanation import dependence_chart, importance_chart
from mirrorspark.pages.figures.image import figure_of_image
from mirrorspark.pages.figures.inputs import binary_inputs
from mirrorspark.pages.figures.lift import cumulative_gain, decile_lift, lift_chart
from mirrorspark.pages.figures.ranking import recall_at_k_curve
from mirrorspark.pages.figures.regression import predicted_and_actual, residuals_by_prediction
from mirrorspark.pages.figures.scores import score_histogram
from mirrorspark.pages.figures.slices import slice_changes
from mirrorspark.pages.figures.threshold_curves import precision_recall_curve, roc_curve
from mirrorspark.pages.figures.training_curves import learning_curves, panel_names, run_curves
from mirrorspark.pages.guarded import drawn

LABEL = np.array([0, 0, 1, 1])
SCORE = np.array([0.1, 0.4, 0.35, 0.8])

BinaryPlot = Callable[..., Figure]
BINARY_PLOTS: list[BinaryPlot] = [roc_curve, precision_recall_curve, calibration_curve, lift_chart, score_histogram]


def legend_texts(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def noisy_task(rows: int = 5_000) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    score = generator.beta(1, 4, size=rows)
    return (generator.random(rows) < score).astype(int), score


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def png_size(figure: Figure) -> tuple[int, int]:
    content = png(figure)
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def every_figure() -> dict[str, Figure]:
    label, score = noisy_task()
    history = {"loss": [0.6, 0.5], "val_loss": [0.7, 0.6], "auc": [0.6, 0.7], "val_auc": [0.5, 0.6]}
    figures = {plot.__name__: plot(label, score) for plot in BINARY_PLOTS}
    figures["learning_curves"] = learning_curves(history, best_epoch=2, restarts=(1.5,))
    figures["recall_at_k_curve"] = recall_at_k_curve({"model": {5: 0.1, 20: 0.3}, "popularity": {5: 0.05, 20: 0.1}})
    return figures


def test_every_panel_has_a_title_or_a_titled_neighbour_and_both_axis_labels() -> None:
    for name, figure in every_figure().items():
        assert any(axes.get_title(loc="left") for axes in figure.axes), name
        for axes in figure.axes:
            assert axes.get_xlabel(), name
            assert axes.get_ylabel(), name


def test_every_figure_renders_to_a_png_of_its_stated_size() -> None:
    for name, figure in every_figure().items():
        width, height = figure.get_size_inches() * figure.dpi
        assert png_size(figure) == (int(width), int(height)), name


@pytest.mark.process
def test_importing_and_drawing_leave_pyplot_and_its_global_state_alone() -> None:
    program = (
        "import sys\n"
        "from mirrorspark.pages.figures.threshold_curves import roc_curve\n"
        "import mirrorspark.pages.figures.calibration, mirrorspark.pages.figures.training_curves\n"
        "import mirrorspark.pages.figures.lift, mirrorspark.pages.figures.threshold_curves\n"
        "import mirrorspark.pages.figures.ranking, mirrorspark.pages.figures.scores\n"
        "roc_curve([0, 1], [0.1, 0.9])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    # Headless machines have no display; the figure must not need one.
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=environment)


@pytest.mark.parametrize("plot", BINARY_PLOTS)
@pytest.mark.parametrize(
    ("label", "score", "message"),
    [
        ([], [], "label has no rows"),
        ([1, 1], [0.2, 0.3], r"one class only \(1\) in 2 rows"),
        ([0, 1], [0.2, 0.3, 0.4], r"score has shape \(3,\) but label has 2 rows"),
        ([0, 1], [0.2, np.nan], "score is nan in row 1"),
    ],
)
def test_binary_plots_refuse_what_they_cannot_draw(
    plot: BinaryPlot, label: list[int], score: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plot(label, score)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binary_inputs([0, 2], [0.2, 0.3]), "label is 2 in row 1"),
        (lambda: binary_inputs([0, 1], [0.2, 0.3], [1, -1]), "weight is -1.0 in row 1"),
        (lambda: binary_inputs([0, 1], [0.2, 0.3], [1, 0]), r"one class only \(0\) in 1 rows"),
        (
            lambda: roc_curve(LABEL, SCORE, baseline={"boosting": [0.5]}),
            r"baseline 'boosting': score has shape \(1,\)",
        ),
        (lambda: calibration_curve([0, 1], [0.2, 1.5]), "score is 1.5 in row 1; calibration needs probabilities"),
        (lambda: learning_curves({}), "history has no epochs"),
        (lambda: learning_curves({"loss": []}), "history has no epochs"),
        (lambda: learning_curves({"loss": [1.0, 0.5]}, best_epoch=0), "best_epoch 0 is not among the epochs 1 to 2"),
        (lambda: learning_curves({"loss": [1.0, 0.5]}, best_epoch=3), "best_epoch 3 is not among the epochs 1 to 2"),
        (lambda: recall_at_k_curve({}), "curves is empty"),
        (lambda: recall_at_k_curve({"model": {}}), "curve 'model' has no points"),
        (lambda: recall_at_k_curve({"model": {5: 1.2}}), "curve 'model' has recall 1.2 at k = 5"),
    ],
)
def test_input_that_cannot_be_drawn_is_refused_by_name(call: Callable[[], Figure], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_roc_legend_states_the_area_of_model_and_baseline() -> None:
    # Pairs (negative, positive): 0.1<0.35, 0.1<0.8, 0.4>0.35, 0.4<0.8 -> 3 of 4 in order.
    figure = roc_curve(LABEL, SCORE, baseline={"reversed": -SCORE})
    assert legend_texts(figure.axes[0]) == [
        "model (AUC = 0.750)",
        "reversed (AUC = 0.250)",
        "chance (AUC = 0.500)",
    ]


def test_roc_uses_row_weights() -> None:
    # The pair out of order (0.4 against 0.35) now weighs 3 of 3 + 3 + 1 + 1.
    figure = roc_curve(LABEL, SCORE, weight=[1, 1, 3, 1])
    expected = metrics.roc_auc_score(LABEL, SCORE, sample_weight=[1, 1, 3, 1])
    assert expected == pytest.approx(5 / 8)
    assert legend_texts(figure.axes[0])[0] == "model (AUC = 0.625)"


def test_precision_recall_legend_states_average_precision_and_base_rate() -> None:
    # By descending score the labels are 1, 0, 1, 0: precision 1 at recall 1/2, 2/3 at recall 1 -> (1 + 2/3) / 2.
    figure = precision_recall_curve(LABEL, SCORE)
    assert legend_texts(figure.axes[0]) == ["model (AP = 0.833)", "base rate = 0.500"]


def test_precision_recall_line_stays_level_where_a_handful_of_rows_decide() -> None:
    # 1,000 positives; the best-scored row is a negative, so precision starts at 0 and then nears 1.
    label = np.array([0] + [1] * 1_000)
    score = np.linspace(1, 0, 1_001)
    line = precision_recall_curve(label, score).axes[0].get_lines()[0]
    recall, precision = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert recall[-1] == 0
    assert precision.min() >= 5 / 6
    assert precision[-1] == precision[-2]


def test_calibration_bins_hold_hand_worked_rates() -> None:
    label = [0, 0, 0, 1, 0, 1, 1, 1]
    score = [0.1, 0.1, 0.2, 0.2, 0.6, 0.6, 0.8, 0.8]
    bins = calibration_bins(binary_inputs(label, score), bins=2)
    assert bins.predicted == pytest.approx([0.15, 0.7])
    assert bins.observed == pytest.approx([0.25, 0.75])
    assert bins.rows.tolist() == [4, 4]
    # (4 * |0.25 - 0.15| + 4 * |0.75 - 0.7|) / 8
    assert bins.expected_calibration_error == pytest.approx(0.075)


def test_calibration_bins_agree_with_scikit_learn() -> None:
    label, score = noisy_task()
    bins = calibration_bins(binary_inputs(label, score), bins=10)
    observed, predicted = sklearn_calibration_curve(label, score, n_bins=10, strategy="quantile")
    assert bins.observed == pytest.approx(observed)
    assert bins.predicted == pytest.approx(predicted)


def test_equal_probabilities_share_one_calibration_bin() -> None:
    bins = calibration_bins(binary_inputs([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.9]), bins=10)
    assert bins.rows.tolist() == [3, 1]
    constant = calibration_bins(binary_inputs([0, 1], [0.5, 0.5]), bins=10)
    assert constant.rows.tolist() == [2]


def test_calibration_weights_count_as_repeated_rows() -> None:
    weighted = calibration_bins(binary_inputs([0, 1, 1], [0.2, 0.2, 0.9], [3, 1, 2]), bins=1)
    assert weighted.observed == pytest.approx([3 / 6])
    assert weighted.predicted == pytest.approx([(0.2 * 4 + 0.9 * 2) / 6])


def test_calibration_figure_shows_error_and_rows_per_bin() -> None:
    label, score = noisy_task()
    figure = calibration_curve(label, score)
    error = calibration_bins(binary_inputs(label, score), 10).expected_calibration_error
    assert f"model (ECE = {error:.4f}), bars: 95%" in legend_texts(figure.axes[0])
    assert [text.get_text() for text in figure.axes[1].texts] == ["500"] * 10


def test_wilson_interval_matches_published_example() -> None:
    # 8 of 10: 0.4902 to 0.9433 (Agresti and Coull, 1998, use the same form).
    low, high = wilson_interval(np.array([0.8]), np.array([10]))
    assert low == pytest.approx([0.4902], abs=1e-4)
    assert high == pytest.approx([0.9433], abs=1e-4)


@pytest.mark.parametrize(("rows", "text"), [(950, "950"), (6_720, "6.72k"), (1_234_567, "1.23M")])
def test_counts_above_bars_are_short(rows: int, text: str) -> None:
    assert compact_count(rows) == text


def test_decile_lift_holds_hand_worked_numbers() -> None:
    # 20 rows, 4 positives; the best two rows hold 2 of them, the next two 1, the worst two 1.
    label = np.zeros(20, dtype=int)
    label[[0, 1, 2, 19]] = 1
    lifts = decile_lift(binary_inputs(label, np.linspace(1, 0, 20)))
    assert lifts == pytest.approx([5.0, 2.5, 0, 0, 0, 0, 0, 0, 0, 2.5])
    assert lifts.mean() == pytest.approx(1.0)


def test_rows_that_tie_share_their_positives_whatever_their_order() -> None:
    label = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 0])
    for order in (label, label[::-1]):
        share, gain = cumulative_gain(binary_inputs(order, np.full(10, 0.3)))
        assert share.tolist() == [0, 1]
        assert gain.tolist() == [0, 1]
        assert decile_lift(binary_inputs(order, np.full(10, 0.3))) == pytest.approx(np.ones(10))


def test_lift_chart_states_the_top_decile() -> None:
    label = np.zeros(20, dtype=int)
    label[[0, 1, 2, 19]] = 1
    gain, lift = lift_chart(label, np.linspace(1, 0, 20)).axes
    assert legend_texts(gain)[0] == "model (top 10% of rows hold 50.0%)"
    assert "model (top decile = 5.00 x base rate)" in legend_texts(lift)
    assert "base rate = 0.200" in legend_texts(lift)


def test_histogram_legend_states_rows_and_mean_of_each_class() -> None:
    axes = score_histogram(LABEL, SCORE).axes[0]
    assert legend_texts(axes) == ["negative (n = 2, mean = 0.250)", "positive (n = 2, mean = 0.575)"]


def test_histogram_of_equal_scores_is_drawn() -> None:
    assert png_size(score_histogram([0, 1], [0.5, 0.5]))[0] > 0


def test_metric_and_validation_metric_share_a_panel_with_loss_first() -> None:
    assert panel_names({"auc": [1], "loss": [1], "val_auc": [1], "val_loss": [1], "val_extra": [1]}) == [
        "loss",
        "auc",
        "extra",
    ]


def test_learning_curves_count_epochs_from_one_and_mark_best_and_restarts() -> None:
    figure = learning_curves({"loss": [0.9, 0.5, 0.4], "val_loss": [1.0, 0.6, 0.7]}, best_epoch=2, restarts=(1.5, 3))
    (axes,) = figure.axes
    training, validation, best, *restarts = axes.get_lines()
    assert list(training.get_xdata()) == [1, 2, 3]
    assert list(training.get_ydata()) == [0.9, 0.5, 0.4]
    assert list(validation.get_ydata()) == [1.0, 0.6, 0.7]
    assert list(best.get_xdata()) == [2, 2]
    assert [list(line.get_xdata()) for line in restarts] == [[1.5, 1.5], [3, 3]]
    assert legend_texts(axes) == ["training (last 0.4)", "validation (last 0.7)", "best epoch 2", "2 restarts"]


def test_learning_curves_of_nan_losses_are_drawn() -> None:
    assert png_size(learning_curves({"loss": [float("nan"), float("nan")]}))[0] > 0


def test_recall_curve_draws_points_by_ascending_k() -> None:
    figure = recall_at_k_curve({"model": {20: 0.3, 5: 0.1}, "popularity": {5: 0.05, 20: 0.1}})
    model, _ = figure.axes[0].get_lines()
    assert list(model.get_xdata()) == [5, 20]
    assert list(model.get_ydata()) == [0.1, 0.3]
    assert legend_texts(figure.axes[0]) == ["model (recall@20 = 0.300)", "popularity (recall@20 = 0.100)"]


@pytest.mark.parametrize("plot", [precision_recall_curve, calibration_curve, lift_chart, score_histogram])
def test_a_legend_covers_nothing_that_is_drawn_whatever_the_data(plot: BinaryPlot) -> None:
    """No corner of a panel is free with scores in the far corner, or without any information."""
    label, score = noisy_task()
    for shown in (score, 1 - score / 9, np.full_like(score, 0.5) + score / 99):
        figure = plot(label, shown)
        figure.draw_without_rendering()
        panels = [axes.get_window_extent() for axes in figure.axes]
        for axes in figure.axes:
            legend = axes.get_legend()
            if legend is not None:
                box = legend.get_window_extent()
                assert not any(box.overlaps(panel) for panel in panels)
                assert box.y1 <= axes.xaxis.get_tightbbox().y0  # below the panel's own words
                assert box.y0 >= 0


def test_the_plots_of_a_regression_count_weights_and_show_the_rival_beside() -> None:
    label, score = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0, 6.0])
    baseline = {"mean": np.full(4, 2.5)}
    figure = predicted_and_actual(label, score, weight=[1, 1, 1, 5], baseline=baseline)
    assert legend_texts(figure.axes[1]) == ["model (mean 1.25)", "mean (mean -0.75)"]
    # Rows of weight 0 are not there.
    assert legend_texts(predicted_and_actual(label, score, weight=[1, 1, 1, 0]).axes[1]) == ["model (mean 0)"]
    groups = residuals_by_prediction(label, score, weight=[1, 1, 1, 5], baseline=baseline)
    model, mean = groups.axes[0].get_lines()[:2]
    assert list(model.get_xdata()) == [1, 2, 3, 6]
    assert list(model.get_ydata()) == [0, 0, 0, 2]
    assert list(mean.get_ydata()) == [-0.75]
    assert list(groups.axes[1].get_lines()[1].get_ydata()) == pytest.approx(
        [np.sqrt((2.25 + 0.25 + 0.25 + 5 * 2.25) / 8)]
    )
    with pytest.raises(ValueError, match=r"label has shape \(4,\) and score of mean \(3,\)"):
        residuals_by_prediction(label, score, baseline={"mean": [1, 2, 3]})


def test_precision_and_recall_of_classes_count_weights_and_stand_beside_the_rivals() -> None:
    label, best = [0, 0, 1, 1], [0, 1, 1, 1]
    figure = class_quality(
        label, best, ["road", "rail", "sea"], weight=[1, 1, 1, 3], baseline={"baseline": [0, 0, 0, 2]}
    )
    precision, recall = figure.axes
    assert [bar.get_width() for bar in precision.patches] == [1.0, 4 / 5, 0.0]
    assert [bar.get_width() for bar in recall.patches] == [0.5, 1.0, 0.0]
    (marks,) = recall.collections
    assert [x for x, _ in np.asarray(marks.get_offsets()).tolist()] == [1.0, 0.0, 0.0]
    assert set(legend_texts(precision)) == {"model", "baseline"}
    confusion = confusion_matrix(label, best, ["road", "rail", "sea"], weight=[1, 3, 1, 1])
    assert [text.get_text() for text in confusion.axes[0].texts] == ["0.25", "0.75", "1.00"]


@pytest.mark.parametrize("classes", [3, 10, 12, 30])
def test_a_confusion_matrix_fills_most_of_its_picture(classes: int) -> None:
    label = np.arange(classes)
    figure = confusion_matrix(label, label, [f"a class with a long name {number}" for number in label])
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_window_extent().height > 0.5 * figure.bbox.height
    cell = axes.get_window_extent().width / min(classes, 21)
    assert max(text.get_window_extent().width for text in axes.texts) < cell


def test_long_names_that_begin_alike_are_told_apart() -> None:
    names = ["a category of goods: toys", "a category of goods: food"]
    (confusion,) = confusion_matrix([0, 1], [0, 1], names).axes
    assert [text.get_text() for text in confusion.get_yticklabels()] == ["a catego…s: toys", "a catego…s: food"]
    (importance,) = importance_chart({f"the feature about {name}": (1.0, 0.1) for name in names}, loss="log loss").axes
    assert len({text.get_text() for text in importance.get_yticklabels()}) == 2


def test_an_image_becomes_a_figure_of_its_size() -> None:
    original = roc_curve(LABEL, SCORE)
    again = figure_of_image(png(original))
    assert png_size(again) == png_size(original)


# Names that matplotlib reads as mathematics, leaves out, cannot draw, or has no room for.
ODD_NAMES = {
    "mathematics": "$20% & $30%",
    "unmatched mathematics": "_$x^\\frac{\n",
    "no glyphs": "中文🎉\x00\ud800",
    "long": "W" * 300,
}


def figures_with_names(name: str) -> dict[str, Callable[[], Figure]]:
    """Return the functions that draw names or values from a table, each with ``name`` wherever it takes a text."""
    weight = {name: SCORE}
    return {
        "classes": lambda: class_quality(LABEL, LABEL, [name, "b"], baseline={name: LABEL}),
        "confusion": lambda: confusion_matrix(LABEL, LABEL, [name, "b"]),
        "importance": lambda: importance_chart({name: (1.0, 0.1)}, loss=name),
        "dependence": lambda: dependence_chart({name: ([name, None], {name: [1.0, 2.0], "b": [2.0, 1.0]})}),
        "runs": lambda: run_curves({name: {name: [1.0, 2.0]}}),
        "learning": lambda: learning_curves({name: [1.0, 2.0]}),
        "over time": lambda: over_time(name, [name, "b"], [1, 2], [1, 1], [2, 2]),
        "lines": lambda: lines_over_time(name, [name, "b"], {name: [1, 2], "c": [1, 2]}, y=name),
        "shares": lambda: shares_over_time(name, [name, "b"], [[1, 2], [2, 3]], y=name),
        "slices": lambda: slice_changes(name, [name], [0.1], [0.0], [0.2], failed=[True]),
        "roc": lambda: roc_curve(LABEL, SCORE, baseline=weight),
        "precision and recall": lambda: precision_recall_curve(LABEL, SCORE, baseline=weight),
        "recall at k": lambda: recall_at_k_curve({name: {1: 0.1, 2: 0.2}}),
        "regression": lambda: predicted_and_actual(SCORE, SCORE, baseline=weight),
        "residuals": lambda: residuals_by_prediction(SCORE, SCORE, baseline=weight),
    }


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES)
def test_a_name_is_drawn_as_it_is_whatever_its_characters(name: str) -> None:
    begin = style.shown(name, 9).rstrip("…")
    for kind, draw in figures_with_names(name).items():
        figure = draw()
        figure.savefig(io.BytesIO(), format="png", dpi=30)
        texts = figure.findobj(Text)
        assert any(begin in text.get_text() for text in texts), kind
        assert not any(text.get_parse_math() for text in texts), kind
        if kind in ("roc", "runs", "lines", "classes", "dependence"):
            legends = [figure.axes[0].get_legend(), *figure.legends]
            assert any(begin in text.get_text() for of in legends if of for text in of.get_texts()), kind


def test_a_name_becomes_a_line_of_text() -> None:
    assert style.shown("a\nb\u2028\x00\ud800\u202e") == "a\\nb\\u2028\\x00\\ud800\\u202e"
    assert style.shown("$x_1$ \\frac{a}") == "$x_1$ \\frac{a}"
    assert [style.shown(value) for value in ("", None, 3)] == ["(empty)", "missing", "3"]
    assert style.shown("abcdef", 4) == "abc…"
    assert [style.label(name) for name in ("_x", "x")] == [" _x", "x"]


def test_powers_of_a_logarithmic_axis_stay_mathematics() -> None:
    figure = style.new_figure()
    axes = figure.add_subplot()
    axes.set_xscale("log")
    style.dress(axes, title="$10^3$", x="$x$", y="")
    axes.plot([1, 1_000], [1, 2])
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    assert axes.xaxis.get_major_ticks()[0].label1.get_parse_math()
    assert not any(text.get_parse_math() for text in (axes.xaxis.label, axes.yaxis.label))


def test_a_picture_that_fails_is_said_and_the_others_are_there(caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> Figure:
        raise ValueError("\n$20% & $30%\n^\nParseException: Expected end of text")

    assert list(drawn({"roc": failing, "lift": lambda: lift_chart(LABEL, SCORE)})) == ["lift"]
    assert caplog.messages == ["'roc' is missing: ValueError: $20% & $30%. The result is complete without it"]


def test_every_figure_takes_the_colours_and_the_font_of_the_page_around_it() -> None:
    """H9: an output does not know whether its page is dark."""
    name = 'fill: #000000; <b>"x"'
    for kind, draw in figures_with_names(name).items():
        markup = figure_html(draw(), f"{kind} <i>")
        svg = ElementTree.fromstring(markup)[0]  # noqa: S314 - our own text
        assert svg.attrib["aria-label"] == f"{kind} <i>"
        assert svg.attrib["fill"] == "currentColor"
        assert not list(svg.iter("style")), kind  # A rule of it would hold for the whole page.
        looks = [element.attrib.get("style", "") for element in svg.iter()]
        assert not any(re.search(r"(fill|stroke): #(000000|ffffff|dddddd|6e6e6e)", look) for look in looks), kind
        assert svg.attrib["font-family"] == "system-ui,sans-serif"
        assert not any("font-family" in look for look in looks), kind
        texts = "".join(svg.itertext())
        assert name[:8] in texts, kind


def test_marks_of_a_figure_are_found_by_references_within_its_page() -> None:
    markup = figure_html(learning_curves({"loss": [1.0, 2.0]}), "curves")
    svg = ElementTree.fromstring(markup)  # noqa: S314 - our own text
    ids = {element.attrib["id"] for element in svg.iter() if "id" in element.attrib}
    asked = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', markup))
    assert {first or second for first, second in asked} <= ids
    assert figure_html(learning_curves({"loss": [1.0, 2.0]}), "curves") == markup


@pytest.mark.parametrize("look", ["dark_background", None])
def test_a_figure_on_a_ground_of_its_own_is_an_image(look: str | None) -> None:
    import matplotlib.style

    with matplotlib.style.context(look or "default"):
        figure = roc_curve(LABEL, SCORE) if look else figure_of_image(png(roc_curve(LABEL, SCORE)))
        assert figure_html(figure, "roc").startswith("<img")


def test_a_page_says_which_of_its_pictures_is_missing() -> None:
    figure = Figure()
    figure.add_subplot().set_title("$20% & $30%")
    markup = figure_html(figure, "Change of <b>")
    assert markup == (
        '<p class="quiet">The picture &#39;Change of &lt;b&gt;&#39; is missing: ValueError: $20% &amp; $30%.</p>'
    )
