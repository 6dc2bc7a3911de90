"""One rank of PyTorch DDP, as torchrun starts it: trains, and writes the seconds of the timed epochs into a file.

Arguments: the work as JSON, an optimizer of the two towers, a folder for the file. The loop is as tight as PyTorch
allows: batches are cut before it, and it computes nothing that the update does not need, no metric either.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]  # in an environment of its own
from torch import nn

from benchmarks.train_data import (
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


def train(work: Work, optimizer_name: str, rank: int) -> float:
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


def main() -> None:
    """Train what the arguments say."""
    work, folder = Work.from_json(sys.argv[1]), Path(sys.argv[3])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    seconds = train(work, sys.argv[2], rank)
    (folder / f"rank-{rank}.json").write_text(json.dumps(seconds), encoding="utf-8")
    torch.distributed.barrier()
    # Not a plain return: gloo's threads now and then abort the process when one rank ends before the other.
    os._exit(0)


def _mlp() -> Any:
    layers: list[Any] = []
    width = FEATURES
    for units in HIDDEN_UNITS:
        layers += [nn.Linear(width, units), nn.ReLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 1))


if __name__ == "__main__":
    main()
