"""Models that were trained here: the signatures of the exported SavedModel that scoring calls, and no others."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scoring.backends.libraries import library
from scoring.backends.protocol import ArrayType, ModelOutputError, Signature
from scoring.backends.saved_model import tensor_type
from scoring.backends.tensorflow_runtime import compute_threads, session_config, start_tensorflow


class TrainedGraph:
    """The graph of a SavedModel with its variables, and those of its tables that some signature needs.

    ``tf.saved_model.load`` would fill the lookup tables of the raw signature as well, which nobody calls here: with 20
    vocabularies of 100,000 tokens that took 90 MB and 0.3 s more. A session of TensorFlow 1 holds what a signature
    depends on, and gives the same outputs bit for bit.
    """

    def __init__(self, folder: Path, *, scann: bool = False, threads: int | None = None) -> None:
        """Load the graph and its variables; imports TensorFlow.

        Args:
            folder: The SavedModel.
            scann: Whether its graph holds an op of ScaNN's.
            threads: As for :func:`session_config`.

        Raises:
            ModuleNotFoundError: TensorFlow or, for a model that needs it, ScaNN is not installed here.
        """
        tf = start_tensorflow()
        if scann:
            # The import registers its op with TensorFlow, which reads the whole graph.
            library("scann", "the model holds a ScaNN index, which needs the package scann")
        self.threads = compute_threads(tf)
        self._folder = folder
        self._meta_graph = _meta_graph(folder)
        self._session = _restored(tf, folder, self._meta_graph, session_config(tf, threads))

    def ends(self, signature: str) -> Any:
        """Return what a signature takes and gives, as the SavedModel has it.

        Raises:
            ModelOutputError: There is none of that name.
        """
        if signature not in self._meta_graph.signature_def:
            raise ModelOutputError(
                f"the SavedModel in {self._folder} has the signatures {sorted(self._meta_graph.signature_def)} but not "
                f"'{signature}'; export the model again"
            )
        return self._meta_graph.signature_def[signature]

    def callable(self, fetches: Sequence[str], feeds: Sequence[str]) -> Callable[..., list[np.ndarray]]:
        """Return what computes some tensors from others, by their names in the graph, once its tables are filled."""
        assets = self._folder / "assets"
        files = {asset.tensor_info.name: str(assets / asset.filename) for asset in self._meta_graph.asset_file_def}
        self._session.run(_initializers(self._session.graph, self._meta_graph, fetches), files)
        run: Callable[..., list[np.ndarray]] = self._session.make_callable(list(fetches), list(feeds))
        return run

    def array_type(self, name: str, end: Any) -> ArrayType:
        """Return the type of an end of a signature."""
        import tensorflow as tf

        spec = tf.TensorSpec(tf.TensorShape(end.tensor_shape), tf.as_dtype(end.dtype))
        return tensor_type(name, spec)


class TrainedBackend:
    """One signature of a model that was trained here, some of whose inputs may be the same in every call."""

    def __init__(self, graph: TrainedGraph, signature: str, given: Mapping[str, Any] | None = None) -> None:
        """Make the signature ready to be called.

        Args:
            graph: Has it.
            signature: Its name.
            given: Inputs that every call gets.

        Raises:
            ModelOutputError: The SavedModel has no such signature.
        """
        self.graph, self.threads = graph, graph.threads
        ends = graph.ends(signature)
        self._given = given or {}
        self._inputs, self._outputs = tuple(ends.inputs), tuple(ends.outputs)
        self.signature = Signature(
            tuple(graph.array_type(name, end) for name, end in ends.inputs.items() if name not in self._given),
            tuple(graph.array_type(name, end) for name, end in ends.outputs.items()),
        )
        self._run = graph.callable(
            [end.name for end in ends.outputs.values()], [end.name for end in ends.inputs.values()]
        )

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the named outputs."""
        every = {**inputs, **self._given}
        found = dict(zip(self._outputs, self._run(*(every[name] for name in self._inputs)), strict=True))
        return {name: found[name] for name in outputs}


def _meta_graph(folder: Path) -> Any:
    """Return the graph of a SavedModel, with its signatures."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    return SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]


def _restored(tf: Any, folder: Path, meta_graph: Any, config: Any) -> Any:
    """Return a session with the graph and the variables of the SavedModel."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        saver = v1.train.import_meta_graph(meta_graph)
        session = v1.Session(graph=graph, config=config)
        if (folder / "variables" / "variables.index").is_file():
            saver.restore(session, str(folder / "variables" / "variables"))
    # A session runs one graph for any number of rows. What TensorFlow 2 would trace, TensorFlow 1 adds to its graph: an
    # error from now on.
    graph.finalize()
    return session


def _initializers(graph: Any, meta_graph: Any, fetches: Iterable[str]) -> list[Any]:
    """Return the operations that fill those tables of the graph that ``fetches`` depend on."""
    (end,) = meta_graph.signature_def["__saved_model_init_op"].outputs.values()
    used = _ancestors([graph.get_tensor_by_name(name).op for name in fetches])
    return [
        initializer
        for initializer in graph.get_operation_by_name(end.name).control_inputs
        if not used.isdisjoint(_ancestors([initializer]))
    ]


def _ancestors(operations: Iterable[Any]) -> set[Any]:
    """Return the operations with all those that they take something from."""
    found: set[Any] = set()
    waiting = [*operations]
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [tensor.op for tensor in operation.inputs]
    return found
