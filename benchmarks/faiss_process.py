"""The process of faiss: runs in an environment that has it, and searches in its indexes on one thread.

It takes requests on its standard input, one JSON object per line, and answers each with one line of JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.connector_process import RESULT_PREFIX

# Links of a node, and how many candidates are looked at (efConstruction) to place one in the graph.
_HNSW_LINKS, _HNSW_BUILD = 32, 200


def serve(folder: Path) -> None:
    """Answer requests about the vectors in ``folder`` until the input ends."""
    import faiss  # type: ignore[import-not-found]  # in an environment of its own

    faiss.omp_set_num_threads(1)
    items, queries = np.load(folder / "items.npy"), np.load(folder / "queries.npy")
    indexes: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["work"] == "build":
            indexes[request["index"]] = _built(faiss, request["index"], items)
            answer: dict[str, Any] = {"version": faiss.__version__}
        else:
            index = indexes[request["index"]]
            if "looks" in request:
                _look_into(index, request["looks"])
            begin = time.perf_counter()
            _, found = index.search(queries, request["k"])
            answer = {"seconds": time.perf_counter() - begin}
            np.save(folder / "found.npy", found)
        print(RESULT_PREFIX + json.dumps(answer), flush=True)


def _built(faiss: Any, name: str, items: np.ndarray) -> Any:
    dim = items.shape[1]
    if name == "flat":
        index = faiss.IndexFlatIP(dim)
    elif name == "ivf":
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, int(np.sqrt(len(items))), faiss.METRIC_INNER_PRODUCT)
        index.train(items)
    else:
        index = faiss.IndexHNSWFlat(dim, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _HNSW_BUILD
    index.add(items)
    return index


def _look_into(index: Any, looks: int) -> None:
    """Set how many cells, or how many candidates of the graph, a search looks at."""
    if hasattr(index, "hnsw"):
        index.hnsw.efSearch = looks
    else:
        index.nprobe = looks


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
