"""The best of a trained network, classical recommenders and their blend, by their lists for the validation rows.

The export decides, in its own process, which has no Spark; the driver reads its decision.
"""

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrorspark.data_pipelines.dataset import block_format
from mirrorspark.data_pipelines.features import kinds
from mirrorspark.data_pipelines.reading import Dataset
from mirrorspark.models import catalog, classical
from mirrorspark.models.retrieval import ranking_values
from mirrorspark.training.configuration import RANKING
from mirrorspark.training.executor import OnProgress
from mirrorspark.training.programs.recommenders import (
    Interactions,
    RowScores,
    best_of_scores,
    blended,
    fitting,
    scaled,
    scores_of,
    tiles,
)
from mirrorspark.training.results.evaluation.model_choice import BLEND, NETWORK, OTHERS_FOLDER, Choice, distinct_figures
from mirrorspark.training.results.evaluation.segments import held_back_items
from mirrorspark.training.results.report import in_words

Lists = npt.NDArray[np.int64]
Values = tuple[float, float]
"""The metric that decides, and the one that decides between equal ones."""

# Shares of the network in a blend: validation rows do not tell finer ones apart, and a recommender's highest scores
# stand out more than a network's do, so that half of the sum is most of the list already.
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)

# Number of recommenders in a blend with the network. Equal parts of the best ones were better on other rows than parts
# that were fitted to the validation rows, and five of them better than three.
_BLENDED = 5

# Validation rows that decide, rounded up to a whole block: they estimate a recall to a third of a percent.
_DECIDING_ROWS = 20_000

# Number of weights of an item that EASE^R and SLIT keep. For 10,000 items they take a fifth of the memory of all pairs,
# and the lists of a blend were as good.
_WEIGHTS = 1000

# Losses of others than the network, where items have features: of those that read them, and of the others.
_LOSS_OF_READERS = "new tables of items need a new training, or register='model'"
_LOSS = "it knows no item without training rows, which register='model' recommends by its features"


@dataclass(frozen=True)
class RecommenderChoice(Choice):
    """Choice of the recommender that is registered, and its reason.

    Attributes:
        loss: Abilities of the network that the registered one lacks, as a clause.
    """

    loss: str = ""

    def in_words(self) -> str:
        """Return the choice as a sentence."""
        own, others = self.values[self.registered], self.others
        shown = [name for name in others if name in (NETWORK, BLEND)]
        if classics := [name for name in others if name not in shown]:
            shown.insert(0, max(classics, key=self.values.__getitem__))
        shares = ", ".join(f"{share:.0%} {in_words(name)}" for name, share in self.weights.items())
        verdict = "as good as or better than" if own in map(self.values.__getitem__, others) else "better than"
        figure, *figures = distinct_figures([own, *map(self.values.__getitem__, shown)])
        return (
            f"{in_words(self.registered)}{f' ({shares})' if self.registered == BLEND else ''}, {verdict} "
            f"{' and '.join(map(in_words, shown))} on the validation rows ({self.metric} {figure} against "
            f"{' and '.join(figures)})"
            f"{f'; {self.loss}' if self.loss else ''}"
        )


@dataclass(frozen=True)
class Recommenders:
    """A network and fitted classical recommenders that score the same candidates.

    Attributes:
        dataset: The dataset of the training.
        architecture: The module or object whose ``predict`` gives the network's queries.
        network: The network.
        predict: Maps a batch's inputs to the network's queries, compiled.
        embeddings: Its vectors of the candidates, float32 ``[ids, dim]``.
        interactions: The users' items in the training rows, and the histories of rows.
        asked: The classical recommenders.
        arrays: The learnt arrays of each of them, in their order.
    """

    dataset: Dataset
    architecture: Any
    network: Any
    predict: Callable[[Any], Any]
    embeddings: npt.NDArray[np.float32]
    interactions: Interactions
    asked: Sequence[classical.Recommender]
    arrays: Sequence[classical.Arrays] = field(repr=False)
    # The network's queries of the blocks that decide, which are scored twice.
    _queries: list[npt.NDArray[np.float32]] = field(default_factory=list, init=False, repr=False)

    def lists(self, split: str, k: int, blend: Mapping[str, float] | None = None) -> dict[str, Lists]:
        """Return the ids of the best ``k`` candidates of each row, int64 ``[rows, k]``, by model, the network first.

        With the shares of a ``blend``, its lists are the last ones, by :data:`BLEND`.
        """
        found = defaultdict[str, list[Lists]](list)
        for tile in self._tiles(split):
            parts: dict[str, npt.NDArray[np.float32]] = {}
            for name, scores in tile.scores.items():
                own = scores(tile.rows)
                found[name].append(best_of_scores(own, tile.excluded, k)[0])
                if blend is not None and name in blend:
                    parts[name] = scaled(own)
            if blend is not None:
                others = [parts[name] for name in blend if name != NETWORK]
                total = blended(parts[NETWORK], others, blend[NETWORK])
                found[BLEND].append(best_of_scores(total, tile.excluded, k)[0])
        return {name: np.concatenate(lists) for name, lists in found.items()}

    def blended_lists(self, k: int, parts: Sequence[str], shares: Sequence[float]) -> list[Lists]:
        """Return the validation lists of blends of the network with the same recommenders, for each of its shares."""
        found: list[list[Lists]] = [[] for _ in shares]
        for tile in self._tiles("validation"):
            network = scaled(tile.scores[NETWORK](tile.rows))
            # The mean of the others is the same for every share.
            others = np.zeros_like(network)
            for name in parts:
                others += scaled(tile.scores[name](tile.rows)) / np.float32(len(parts))
            for lists, share in zip(found, shares, strict=True):
                lists.append(best_of_scores(blended(network, [others], share), tile.excluded, k)[0])
        return [np.concatenate(lists) for lists in found]

    def _tiles(self, split: str) -> Iterator["_Tile"]:
        """Yield a split's rows in parts that are scored together; of the validation, which decides, the first rows."""
        from mirrorspark.models.serving import input_tensors

        scored_rows, known = 0, self._queries if split == "validation" else []
        for number, block in enumerate(self.dataset.blocks(split, keys=True)):
            if split == "validation" and scored_rows >= _DECIDING_ROWS:
                return
            if number == len(known):
                known.append(self.predict(input_tensors(self.dataset.spec.query_features, block.features)).numpy())
            scores = self._scores(block, known[number])
            for rows in tiles(block.rows, self._items):
                yield _Tile(rows, scores, None if block.excluded is None else block.excluded[rows])
            scored_rows += block.rows

    @property
    def _items(self) -> int:
        return len(self.embeddings) - kinds.FIRST_VOCABULARY_ID

    @cached_property
    def _scorers(self) -> list[fitting.Scores]:
        """The scores of the classical recommenders; those that learn the same share them."""
        # They hold the arrays in another form, which takes as long to make as a block to score.
        found: dict[tuple[str, str], fitting.Scores] = {}
        for one, arrays in zip(self.asked, self.arrays, strict=True):
            if fitted_as(one) not in found:
                found[fitted_as(one)] = scores_of(one.name, one.settings, arrays)
        return [found[fitted_as(one)] for one in self.asked]

    def _scores(self, block: block_format.Block, queries: npt.NDArray[np.float32]) -> dict[str, RowScores]:
        """Return the scores of a block's rows by model."""
        candidates = self.embeddings[kinds.FIRST_VOCABULARY_ID :].T
        found: dict[str, RowScores] = {NETWORK: lambda rows: queries[rows] @ candidates}
        for one, scores in zip(self.asked, self._scorers, strict=True):
            histories = self.interactions.histories(block, getattr(one.settings, "last_items", 0))
            found[one.label] = partial(_rows_scored, scores, histories)
        return found


@dataclass(frozen=True)
class _Tile:
    """Rows of a block whose scores are in memory together.

    Attributes:
        rows: Their places in the block.
        scores: The scores of the block's rows by model, the network first.
        excluded: int64 ``[rows, any]``, ids that are not candidates for the row; None to exclude none.
    """

    rows: slice
    scores: Mapping[str, RowScores]
    excluded: npt.NDArray[np.int64] | None


def _rows_scored(scores: Any, histories: Any, rows: slice) -> npt.NDArray[np.float32]:
    return np.asarray(scores(histories[rows]))


@dataclass(frozen=True)
class ChosenRecommender:
    """The recommender that was chosen for the export: the choice, its architecture and its model."""

    choice: RecommenderChoice
    architecture: Any
    model: Any = field(repr=False)


def choose_recommender(
    dataset: Dataset,
    architecture: Any,
    network: Any,
    predict: Callable[[Any], Any],
    asked: Sequence[classical.Recommender],
    *,
    monitor: str,
    k: int,
    seed: int,
    folder: Path,
    on_progress: OnProgress = lambda doing, done=0, total=0: None,
) -> ChosenRecommender:
    """Fit classical recommenders, choose the best one or a blend, and keep the choice and the others' test lists.

    The monitored recall or NDCG decides, else the recall of the lists. The other of the two breaks ties, then the
    order: the network, the recommenders as they are given, the blend.

    Args:
        dataset: The dataset of the training.
        architecture: The module or object whose ``predict`` gives the network's queries.
        network: The network.
        predict: Maps a batch's inputs to the network's queries, compiled.
        asked: The recommenders to fit, none that Spark fits.
        monitor: The monitored metric.
        k: Length of the lists.
        seed: Fixes what the recommenders draw.
        folder: Folder of the predictions.
        on_progress: Gets the progress.
    """
    from mirrorspark.models.serving import candidate_embeddings

    interactions = Interactions(dataset)
    arrays, fits = _fit_all(interactions, asked, seed, on_progress)
    embeddings = candidate_embeddings(network)
    models = Recommenders(dataset, architecture, network, predict, embeddings, interactions, asked, arrays)
    metric = monitor.removeprefix("val_") if RANKING.fullmatch(monitor) else f"recall_at_{k}"
    names = metric, metric.replace("recall", "ndcg") if "recall" in metric else metric.replace("ndcg", "recall")
    depth = int(metric.rpartition("_")[2])
    items = held_back_items(dataset, "validation")

    def judged(lists: Lists) -> Values:
        of_lists = slice(np.searchsorted(items.rows, len(lists)))
        queries, rows = items.queries[of_lists], items.rows[of_lists]
        found = ranking_values(lists, items.candidates[of_lists], (depth,), queries=queries, rows=rows)
        first, second = (float(found[name].mean()) for name in names)
        return first, second

    on_progress("comparing recommenders on the validation rows")
    values = {name: judged(lists) for name, lists in models.lists("validation", depth).items()}
    classics = [one.label for one in asked]
    parts = sorted(classics, key=lambda name: values[name], reverse=True)[:_BLENDED]
    of_shares = [judged(lists) for lists in models.blended_lists(depth, parts, _SHARES)]
    share, values[BLEND] = max(zip(_SHARES, of_shares, strict=True), key=lambda pair: pair[1])
    registered = max(values, key=values.__getitem__)  # the first of equal ones
    choice = RecommenderChoice(
        registered,
        metric,
        {name: value[0] for name, value in values.items()},
        {NETWORK: share} | {name: (1 - share) / len(parts) for name in parts},
        fits,
        loss="" if dataset.spec.items is None else _loss(registered, asked),
    )
    on_progress("lists of those that are not registered")
    lists = models.lists("test", k, choice.weights)
    shutil.rmtree(folder / OTHERS_FOLDER, ignore_errors=True)  # of an earlier try
    (folder / OTHERS_FOLDER).mkdir(parents=True)
    for name in choice.others:
        np.save(folder / OTHERS_FOLDER / f"{name}.npy", lists[name])
    choice.save(folder)
    return ChosenRecommender(choice, *_registered(models, choice))


def _loss(registered: str, asked: Sequence[classical.Recommender]) -> str:
    """Return the abilities of the network that the registered one lacks, where items have features."""
    reading = [one.label for one in asked if catalog.reads_items(one.name)]
    return "" if registered == NETWORK else _LOSS_OF_READERS if registered in (BLEND, *reading) else _LOSS


def read_lists(folder: Path, name: str) -> Lists:
    """Return the ids in the test lists of one that is not registered, int64 ``[rows, k]``.

    ``folder`` is that of the predictions.
    """
    return np.asarray(np.load(folder / OTHERS_FOLDER / f"{name}.npy"))


def fitted_as(one: classical.Recommender) -> tuple[str, str]:
    """Return equal values for recommenders that learn the same, and score from histories of other lengths."""
    learnt = {name: value for name, value in one.options.items() if name != "last_items" or one.name == "slit"}
    return one.name, repr(sorted(learnt.items()))


def _fit_all(
    interactions: Interactions, asked: Sequence[classical.Recommender], seed: int, on_progress: OnProgress
) -> tuple[list[classical.Arrays], dict[str, float]]:
    """Return the arrays of each recommender and the seconds of its fit by label.

    Those that learn the same share the arrays, and the first one has the seconds.
    """
    found: dict[tuple[str, str], classical.Arrays] = {}
    seconds = dict.fromkeys((one.label for one in asked), 0.0)
    for place, one in enumerate(asked):
        if fitted_as(one) not in found:
            on_progress(f"fitting {in_words(one.name)}", place, len(asked))
            begin = time.monotonic()
            found[fitted_as(one)] = fitting.largest(fitting.fit(one, interactions, seed), _WEIGHTS)
            seconds[one.label] = time.monotonic() - begin
    return [found[fitted_as(one)] for one in asked], seconds


def _registered(models: Recommenders, choice: RecommenderChoice) -> tuple[Any, Any]:
    """Return the architecture and the model, in TensorFlow, of the registered one."""
    from mirrorspark.models.retrieval import BlendedRecommender, FittedRecommender, blended_recommender

    if choice.registered == NETWORK:
        return models.architecture, models.network
    parts = [name for name in choice.weights if name != NETWORK]
    wanted = parts if choice.registered == BLEND else [choice.registered]
    of_label = {one.label: (one, arrays) for one, arrays in zip(models.asked, models.arrays, strict=True)}
    indexes: dict[tuple[str, str], Any] = {}
    built = []
    for one, arrays in (of_label[label] for label in wanted):
        known = indexes.get(fitted_as(one))
        built.append(FittedRecommender(one.name, one.settings, models.dataset.features, arrays, known))
        indexes[fitted_as(one)] = built[-1].index
    if choice.registered == BLEND:
        blend = BlendedRecommender(
            models.architecture, models.network, models.embeddings, built, choice.weights[NETWORK]
        )
        return blended_recommender, blend
    return catalog.architecture(built[0].name), built[0]
