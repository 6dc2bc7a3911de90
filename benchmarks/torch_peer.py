"""PyTorch's side of ``train_steps`` and ``train_models``, in an environment of its own: DDP over gloo.

``python torch_peer.py ROLE …``, with three roles. ``launcher WORKERS`` starts ranks through Spark's TorchDistributor,
and ``models`` is a rank of ``train_models``: both take requests on their standard input, one JSON object per line, and
answer each with one line of JSON. ``rank WORK OPTIMIZER FOLDER`` is a rank of ``train_steps`` as torchrun starts it; it
writes the seconds of the timed epochs into a file of the folder. ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and
``MASTER_PORT`` name the ranks.

The loops are as PyTorch allows: batches are cut before them and lie in memory, and no metric is computed.
"""

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]  # in an environment of its own
from torch import nn

from benchmarks.peer_process import Request, serve
from benchmarks.train_steps_rank import (
    EMBEDDING_DIM,
    EMBEDDING_LEARNING_RATE,
    FEATURES,
    HIDDEN_UNITS,
    ITEMS,
    LEARNING_RATE,
    USERS,
    Work,
    rows_of,
)

_FIRST_ID = 2  # 0 is missing, 1 out of vocabulary
_TRIES = 3


def launcher(workers: int) -> None:
    """Start two-rank trainings, one per request, until the input ends."""
    # Ranks inherit these from Spark's Python workers. All ranks are on this machine, as TF_CONFIG says to the others.
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master(f"local[{workers}]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )

    def answer(request: Request) -> Request:
        if request["work"] == "versions":
            return {"torch": torch.__version__}
        return {"seconds": _seconds(Work(**request["of"]), request["optimizer"], workers)}

    serve(answer)
    spark.stop()


def _seconds(work: Work, optimizer: str, workers: int) -> float:
    """Return the seconds of the timed epochs, in the mean of the ranks."""
    # Its ranks meet at a port that was free a moment before. Where they do not, TorchDistributor returns all the same:
    # Spark's wrapper of torchrun forgets the exit status.
    for _ in range(_TRIES):
        told = _told(work, optimizer, workers)
        if len(told) == workers:
            return harmonic_mean(told)
    raise RuntimeError(f"{_TRIES} times not all of {workers} ranks of PyTorch have reported their training time")


def _told(work: Work, optimizer: str, workers: int) -> list[float]:
    """Train once, and return the seconds of each rank that came to its end."""
    from pyspark.ml.torch.distributor import TorchDistributor

    folder = Path(tempfile.mkdtemp(prefix="torch-"))
    try:
        distributor = TorchDistributor(num_processes=workers, local_mode=False, use_gpu=False)
        distributor.run(__file__, "rank", work.to_json(), optimizer, str(folder))
        return [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("rank-*.json")]
    finally:
        shutil.rmtree(folder)


class TwoTower(nn.Module):
    """A table of users and one of items; every user is scored with every item of the batch."""

    def __init__(self) -> None:
        super().__init__()
        # As on TensorFlow's side: only the rows that a batch names have gradients.
        self.users = nn.Embedding(USERS, EMBEDDING_DIM, sparse=True)
        self.items = nn.Embedding(ITEMS, EMBEDDING_DIM, sparse=True)

    def forward(self, users: Any, items: Any) -> Any:
        """Return the logits ``[batch, batch]``."""
        return self.users(users) @ self.items(items).T


def train_steps(work: Work, optimizer_name: str, rank: int) -> float:
    """Train and return the seconds of the timed steps."""
    inputs, labels = rows_of(work, rank)
    columns = [torch.from_numpy(column).split(work.batch) for column in (*inputs, labels)]
    batches = list(zip(*columns, strict=True))
    torch.manual_seed(1)
    if work.model == "mlp":
        # These two save DDP a copy, and its search for the order of the gradients. The fused Adam is one kernel for all
        # weights. No torch.compile: it needs a C++ compiler on every worker.
        net = nn.parallel.DistributedDataParallel(_mlp(), gradient_as_bucket_view=True, static_graph=True)
        optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, fused=True)
        criterion = nn.BCEWithLogitsLoss()
    else:
        net = nn.parallel.DistributedDataParallel(TwoTower())
        kind = {"adagrad": torch.optim.Adagrad, "sparse_adam": torch.optim.SparseAdam}[optimizer_name]
        optimizer = kind(list(net.parameters()), lr=EMBEDDING_LEARNING_RATE)
        criterion = nn.CrossEntropyLoss()
    ends = []
    for steps in (work.warm_up_steps, work.steps):
        for step in range(steps):
            *features, label = batches[step % len(batches)]
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(net(*features), label)
            loss.backward()
            optimizer.step()
        loss.item()
        ends.append(time.perf_counter())
    return ends[1] - ends[0]


def rank(work: str, optimizer: str, folder: str) -> None:
    """Train once, and write the seconds into a file."""
    number = torch.distributed.get_rank()
    seconds = train_steps(Work.from_json(work), optimizer, number)
    (Path(folder) / f"rank-{number}.json").write_text(json.dumps(seconds), encoding="utf-8")
    torch.distributed.barrier()


def _mlp() -> Any:
    layers: list[Any] = []
    width = FEATURES
    for units in HIDDEN_UNITS:
        layers += [nn.Linear(width, units), nn.ReLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 1))


class DeepCross(nn.Module):
    """An embedding of each token next to the numbers, low-rank crosses, a net and its loss; ``models.multi_field``."""

    def __init__(
        self, ids: Sequence[int], numbers: int, dim: int, layers: int, rank: int, units: Sequence[int]
    ) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.tensor([0, *np.cumsum(ids)[:-1].tolist()]))
        self.table = nn.Embedding(sum(ids), dim)
        width = len(ids) * dim + numbers
        self.downs = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(layers))
        self.ups = nn.ModuleList(nn.Linear(rank, width) for _ in range(layers))
        widths = [width, *units]
        hidden = [part for pair in zip(widths, units, strict=False) for part in (nn.Linear(*pair), nn.ReLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(widths[-1], 1))

    def forward(self, tokens: Any, numbers: Any, labels: Any) -> Any:
        """Return the loss of int64 ``[batch, tokens]``, float32 ``[batch, numbers]`` and float32 ``[batch]``."""
        first = torch.cat([self.table(tokens + self.offsets).flatten(1), numbers], dim=1)
        last = first
        for down, up in zip(self.downs, self.ups, strict=True):
            last = first * up(down(last)) + last
        return nn.functional.binary_cross_entropy_with_logits(self.net(last)[:, 0], labels)


class SasRec(nn.Module):
    """Causal self-attention whose every state predicts the next item, and its loss; ``models.sasrec``."""

    def __init__(self, ids: int, longest: int, dim: int, blocks: int, dropout: float, negatives: int) -> None:
        super().__init__()
        self.dim, self.negatives, self.classes = dim, negatives, ids - _FIRST_ID
        self.items = nn.Embedding(ids, dim)
        nn.init.uniform_(self.items.weight, -0.05, 0.05)
        self.positions = nn.Parameter(torch.empty(1 + longest, dim).uniform_(-0.05, 0.05))
        self.blocks = nn.ModuleList(_Block(dim, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, history: Any, item: Any) -> Any:
        """Return the loss of int64 ``[batch, longest]``, padded with 0 on the right, and of int64 ``[batch]``."""
        ids = nn.functional.pad(history, (1, 0))
        is_id = ids != 0
        states = self.dropout(self.items(ids) * is_id[:, :, None] * math.sqrt(self.dim) + self.positions)
        for block in self.blocks:
            states = block(states)
        following = nn.functional.pad(history, (0, 1)).scatter(1, is_id.sum(1, keepdim=True), item[:, None])
        used = (following >= _FIRST_ID).flatten().nonzero()[:, 0]
        states, own = self.norm(states).flatten(0, 1)[used], following.flatten()[used]
        ranks = (torch.rand(self.negatives) * math.log(self.classes + 1.0)).exp().long().clamp_max_(self.classes) - 1
        drawn = ranks + _FIRST_ID
        expected = torch.log1p(1.0 / (ranks + 1.0)) / math.log(self.classes + 1.0) * self.negatives
        others = states @ self.items(drawn).T - expected.log()
        others = others.masked_fill(own[:, None] == drawn, -torch.inf)
        logits = torch.cat([(states * self.items(own)).sum(1, keepdim=True), others], dim=1)
        return nn.functional.cross_entropy(logits, torch.zeros(len(own), dtype=torch.long))


class _Block(nn.Module):
    """Self-attention and two dense layers, each with a residual connection; one head."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.projections, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.net = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.dropout, self.share = nn.Dropout(dropout), dropout

    def forward(self, states: Any) -> Any:
        """Return the next states ``[batch, steps, dim]``; padding is on the right, where no other state reads it."""
        read = nn.functional.scaled_dot_product_attention(
            *self.projections(self.norms[0](states)).chunk(3, dim=-1), dropout_p=self.share, is_causal=True
        )
        states = states + self.dropout(self.output(read))
        return states + self.dropout(self.net(self.norms[1](states)))


MODELS: dict[str, Callable[..., nn.Module]] = {"dcn": DeepCross, "sasrec": SasRec}


def models() -> None:
    """Train the models that are asked for until the input ends."""
    train: Callable[[int], float] | None = None

    def answer(request: Request) -> Request:
        nonlocal train
        if request["work"] == "versions":
            return {"torch": torch.__version__}
        if request["work"] == "begin":
            train = trainer(request["peer"], request["sizes"], request["batches"])
        assert train is not None, "a model begins before it trains"
        return {"seconds": train(request["steps"])}

    serve(answer)


def trainer(name: str, sizes: dict[str, Any], batches: str) -> Callable[[int], float]:
    """Return a function that trains a new model for a number of steps, and returns the seconds of a step.

    Args:
        name: A key of :data:`MODELS`.
        sizes: Its arguments.
        batches: File of arrays ``[batches, rows, ...]``, in the order of the arguments of the model's ``forward``.
    """
    torch.manual_seed(1)
    with np.load(batches) as file:
        arrays = [torch.from_numpy(file[key]) for key in file.files]
    # These two save DDP a copy, and its search for the order of the gradients. The fused Adam is one kernel for all
    # weights.
    net = nn.parallel.DistributedDataParallel(MODELS[name](**sizes), gradient_as_bucket_view=True, static_graph=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, fused=True)

    def train(steps: int) -> float:
        begin = time.perf_counter()
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = net(*(array[step % len(array)] for array in arrays))
            loss.backward()
            optimizer.step()
        loss.item()
        return (time.perf_counter() - begin) / steps

    return train


if __name__ == "__main__":
    role, arguments = sys.argv[1], sys.argv[2:]
    if role == "launcher":
        launcher(int(arguments[0]))
    else:
        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo")
        if role == "rank":
            rank(*arguments)
        else:
            models()
        # Not a plain return: gloo's threads now and then abort the process when one rank ends before the other.
        os._exit(0)
