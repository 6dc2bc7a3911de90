"""One PyTorch rank of ``train_models``: the same two models, trained by DDP over gloo in an environment of its own.

It takes requests on its standard input, one JSON object per line, and answers each with one line of JSON. Its rows are
batches of the product's reader, cut before and held in memory; it computes no metric. ``RANK``, ``WORLD_SIZE``,
``MASTER_ADDR`` and ``MASTER_PORT`` name the ranks.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]  # in an environment of its own
from torch import nn

from benchmarks.connector_process import RESULT_PREFIX

_LEARNING_RATE = 0.001
_FIRST_ID = 2  # 0 is missing, 1 out of vocabulary


class DeepCross(nn.Module):
    """An embedding of each token beside the numbers, low-rank crosses, a net and its loss; ``models.multi_field``."""

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


def serve() -> None:
    """Answer requests until the input ends."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    train: Callable[[int], float] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["work"] == "versions":
            print(RESULT_PREFIX + json.dumps({"torch": torch.__version__}), flush=True)
            continue
        if request["work"] == "begin":
            train = trainer(request["peer"], request["sizes"], request["batches"])
        assert train is not None, "a model begins before it trains"
        print(RESULT_PREFIX + json.dumps({"seconds": train(request["steps"])}), flush=True)


def trainer(name: str, sizes: dict[str, Any], batches: str) -> Callable[[int], float]:
    """Return what trains so many steps of a new model, and returns the seconds of a step.

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
    optimizer = torch.optim.Adam(net.parameters(), lr=_LEARNING_RATE, fused=True)

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
    serve()
    # Not a plain return: gloo's threads now and then abort the process when one rank ends before the other.
    os._exit(0)
