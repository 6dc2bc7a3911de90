"""Backend for models that were trained here, with only the signatures that scoring calls."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirrorspark.data_pipelines.features import plain_name
from mirrorspark.scoring.backends.libraries import import_scann
from mirrorspark.scoring.backends.protocol import ArrayType, ModelOutputError, Signature
from mirrorspark.scoring.backends.saved_model import tensor_type
from mirrorspark.scoring.backends.tensorflow_runtime import (
    compute_threads,
    session_config,
    start_tensorflow,
    without_notes,
)


class TrainedGraph:
    """The graph of a SavedModel with its variables, and with the look-up tables that a signature needs.

    ``tf.saved_model.load`` would also fill the tables of the raw signature, which is not called here: 90 MB and 0.3 s
    more for 20 vocabularies of 100,000 tokens. A session of TensorFlow 1 holds only the dependencies of a signature,
    and its outputs are equal bit for bit.
    """

    def __init__(self, folder: Path, *, scann: bool = False, threads: int | None = None) -> None:
        """Load the graph and its variables; imports TensorFlow.

        Args:
            folder: The SavedModel.
            scann: Whether the graph has an op of ScaNN.
            threads: See :func:`session_config`.

        Raises:
            ModuleNotFoundError: TensorFlow or, for a model that needs it, ScaNN is not installed here.
            UnsupportedModelError: ScaNN is built for another TensorFlow.
        """
        tf = start_tensorflow()
        if scann:
            # The import registers ScaNN's op, which TensorFlow needs to read the graph.
            import_scann()
        self.threads = compute_threads(tf)
        self._folder = folder
        self._meta_graph = _meta_graph(folder)
        self._session = _restored(tf, folder, self._meta_graph, session_config(tf, threads))
        # Where Python ends first, TensorFlow's destructors of open sessions fail, which is printed.
        weakref.finalize(self, self._session.close)

    def signature_def(self, signature: str) -> Any:
        """Return the definition of a signature in the SavedModel.

        Raises:
            ModelOutputError: There is no signature of that name.
        """
        if signature not in self._meta_graph.signature_def:
            raise ModelOutputError(
                f"the SavedModel in {self._folder} has the signatures {sorted(self._meta_graph.signature_def)} but not "
                f"'{signature}'; export the model again"
            )
        return self._meta_graph.signature_def[signature]

    def callable(self, fetches: Sequence[str], feeds: Sequence[str]) -> Callable[..., list[np.ndarray]]:
        """Fill the needed tables and return a function from ``feeds`` to ``fetches``, names of tensors in the graph.

        Its arguments must be arrays of the types and ranks of ``feeds``.
        """
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        assets = self._folder / "assets"
        files = {asset.tensor_info.name: str(assets / asset.filename) for asset in self._meta_graph.asset_file_def}
        self._session.run(_initializers(self._session.graph, self._meta_graph, fetches), files)
        # There is no public function: ``make_callable`` checks and converts each feed in Python, as ``Session.run``
        # does, which takes 0.53 ms for 39 feeds and one row, where this takes 0.04 ms. Keras calls it, too.
        options = CallableOptions(feed=feeds, fetch=fetches)
        run: Callable[..., list[np.ndarray]] = self._session._make_callable_from_options(options)
        return run

    def array_type(self, name: str, tensor_info: Any) -> ArrayType:
        """Return the type of an input or output of a signature."""
        import tensorflow as tf

        spec = tf.TensorSpec(tf.TensorShape(tensor_info.tensor_shape), tf.as_dtype(tensor_info.dtype))
        return tensor_type(name, spec)


class TrainedBackend:
    """One signature of a trained model; some of its inputs may be fixed."""

    def __init__(
        self, graph: TrainedGraph, signature: str, given: Mapping[str, Any] | None = None, names: Iterable[str] = ()
    ) -> None:
        """Make the signature ready to be called.

        Args:
            graph: Graph with the signature.
            signature: Name of the signature.
            given: Fixed inputs, the same in every call.
            names: Names of the inputs in a call, which have plain ones in the graph.

        Raises:
            ModelOutputError: The SavedModel has no such signature.
        """
        self.graph, self.threads = graph, graph.threads
        definition = graph.signature_def(signature)
        self.given = given or {}
        self.names = tuple(names)
        of_graph = {plain_name(name): name for name in self.names}
        inputs = {of_graph.get(name, name): tensor_info for name, tensor_info in definition.inputs.items()}
        self._inputs, self._outputs = tuple(inputs), tuple(definition.outputs)
        self.signature = Signature(
            tuple(
                graph.array_type(name, tensor_info) for name, tensor_info in inputs.items() if name not in self.given
            ),
            tuple(graph.array_type(name, tensor_info) for name, tensor_info in definition.outputs.items()),
        )
        self._run = graph.callable(
            [tensor_info.name for tensor_info in definition.outputs.values()],
            [tensor_info.name for tensor_info in inputs.values()],
        )

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the named outputs."""
        every = {**inputs, **self.given}
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
            with without_notes():
                saver.restore(session, str(folder / "variables" / "variables"))
    # A session runs one graph for any number of rows. Any later addition to the graph, TensorFlow 1's form of a new
    # trace, is an error from now on.
    graph.finalize()
    return session


def _initializers(graph: Any, meta_graph: Any, fetches: Iterable[str]) -> list[Any]:
    """Return the operations that fill the tables that ``fetches`` depend on."""
    (tensor_info,) = meta_graph.signature_def["__saved_model_init_op"].outputs.values()
    used = _ancestors([graph.get_tensor_by_name(name).op for name in fetches])
    return [
        initializer
        for initializer in graph.get_operation_by_name(tensor_info.name).control_inputs
        if not used.isdisjoint(_ancestors([initializer]))
    ]


def _ancestors(operations: Iterable[Any]) -> set[Any]:
    """Return the operations and all operations that they depend on."""
    found: set[Any] = set()
    waiting = [*operations]
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [tensor.op for tensor in operation.inputs]
    return found
