"""Backend for SavedModels of other origin: calls a named signature with tensors."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirrorspark.scoring.backends.libraries import import_scann, library
from mirrorspark.scoring.backends.protocol import ELEMENTS, ArrayType, Signature, UnsupportedModelError, with_rank
from mirrorspark.scoring.backends.tensorflow_runtime import compute_threads, start_tensorflow

# TensorFlow's attribute for compiled functions (python/eager/polymorphic_function/attributes.py), which is not public.
_COMPILED = "_XlaMustCompile"

_MISSING_OPERATION = re.compile(r"Op type not registered '(\w+)'")

# Begins the names of ScaNN's operations, which its package adds to TensorFlow when it is imported.
_SCANN = "Scann>"

# Operations that call a Python function of this process by its number. The number in a file means another one here.
_PYTHON_OPERATIONS = frozenset({"EagerPyFunc", "PyFunc", "PyFuncStateless"})
# Operations that read or write files, or reach other processes, wherever a graph has them. Those that save and restore
# variables and fill tables from assets are in every SavedModel, and are not among them.
_FILE_OPERATIONS = frozenset(
    {
        *("ReadFile", "WriteFile", "MatchingFiles", "ImmutableConst", "DecodeProtoV2", "EncodeProto"),
        *("WholeFileReader", "WholeFileReaderV2", "TextLineReader", "TextLineReaderV2", "LMDBReader"),
        *("TFRecordReader", "TFRecordReaderV2", "FixedLengthRecordReader", "FixedLengthRecordReaderV2"),
        *("TextLineDataset", "TFRecordDataset", "TFRecordDatasetV2", "FixedLengthRecordDataset"),
        *(
            "FixedLengthRecordDatasetV2",
            "CSVDataset",
            "CSVDatasetV2",
            "SqlDataset",
            "LMDBDataset",
            "MatchingFilesDataset",
        ),
        *("SaveDataset", "SaveDatasetV2", "LoadDataset", "SnapshotDataset", "SnapshotDatasetV2", "DatasetToTFRecord"),
        *("Save", "SaveSlices", "Restore", "RestoreSlice", "LoadAndRemapMatrix", "GenerateVocabRemapping"),
        *("CreateSummaryFileWriter", "CreateSummaryDbWriter", "DebugIdentity", "DebugIdentityV2", "DebugIdentityV3"),
        *("RemoteCall", "RpcCall", "RpcClient", "RpcServer", "DataServiceDataset", "FileSystemSetConfiguration"),
    }
)

DEFAULT_SIGNATURE = "serving_default"


class SavedModelBackend:
    """A signature of a SavedModel.

    Attributes:
        needs_trust: Whether its graphs read or write files, or reach other processes.
    """

    def __init__(
        self, folder: Path, *, signature: str | None = None, threads: int | None = None, trusted: bool = False
    ) -> None:
        """Load the SavedModel; imports TensorFlow.

        Args:
            folder: Folder of ``saved_model.pb``.
            signature: Name of the signature to call; None chooses ``serving_default``, the only one, or for a module
                without signatures, as TF-Hub has them, its own call with a tensor of texts.
            threads: Ignored: TensorFlow uses the threads of the process
                (:func:`scoring.backends.tensorflow_runtime.limit_tensorflow`).
            trusted: Whether its graphs may read and write files.

        Raises:
            UnsupportedModelError: It is damaged, there is no such signature, or none to choose, TensorFlow lacks an
                operation, or one calls Python, or reads or writes files and it is not trusted.
            ModuleNotFoundError: TensorFlow is not installed here, or ScaNN for a graph with its operations.
        """
        tf = start_tensorflow()
        self.threads = compute_threads(tf)
        # This check precedes the loading, which runs the graphs that fill the tables.
        self.needs_trust = _check_operations(folder, trusted=trusted)
        # The signature does not keep its own variables and tables alive; the module does.
        self._module = _loaded(tf, folder)
        self._call = _function(tf, self._module, signature, folder)
        specs = self._call.structured_input_signature[1]
        self._to_tensor = tf.constant
        self._ranks = {name: spec.shape.rank for name, spec in specs.items()}
        self.signature = Signature(
            tuple(tensor_type(name, spec) for name, spec in specs.items()),
            tuple(tensor_type(name, spec) for name, spec in self._call.structured_outputs.items()),
            texts_are_bytes=True,
            compiles_each_shape=_is_compiled(self._call.graph),
        ).with_rows()

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the named outputs."""
        tensors = {name: self._to_tensor(with_rank(values, self._ranks[name])) for name, values in inputs.items()}
        given = self._call(**tensors)
        return {name: given[name].numpy() for name in outputs}

    def in_graph(self, takes: str, gives: str) -> tuple[Any, Callable[[Any], Any]] | None:
        """Return a function of tensors for a graph, with the module whose variables and tables it needs.

        Args:
            takes: The only input.
            gives: The output.

        Returns:
            None for a SavedModel of TensorFlow 1, which does not say which tables a function needs.
        """
        if hasattr(self._module, "asset_paths"):
            return None
        rank = self._ranks[takes]

        def call(tensor: Any) -> Any:
            return self._call(**{takes: tensor[:, None] if rank == 2 else tensor})[gives]

        return self._module, call


def side_effects(graph: Any) -> list[str]:
    """Return the operations of a ``GraphDef`` that call Python, read or write files, or reach other processes."""
    return sorted({node.op for node in _nodes(graph) if _has_side_effects(node)})


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a ``GraphDef`` and of its functions."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _has_side_effects(node: Any) -> bool:
    if node.op == "PrintV2":
        return bool(node.attr["output_stream"].s.startswith(b"file:"))
    return node.op in _PYTHON_OPERATIONS or node.op in _FILE_OPERATIONS


def _check_operations(folder: Path, *, trusted: bool) -> bool:
    """Return whether the graphs of a SavedModel read or write files.

    Raises:
        UnsupportedModelError: They do, and it is not trusted, or they call Python, or it is damaged.
    """
    parse = library("tensorflow.python.saved_model.loader_impl", "a SavedModel needs TensorFlow").parse_saved_model
    document = _read(folder, lambda: parse(str(folder)))
    found = sorted({name for one in document.meta_graphs for name in side_effects(one.graph_def)})
    if any(node.op.startswith(_SCANN) for one in document.meta_graphs for node in _nodes(one.graph_def)):
        import_scann()
    if python := [name for name in found if name in _PYTHON_OPERATIONS]:
        raise UnsupportedModelError(
            f"{folder} has the operations {', '.join(python)} (tf.py_function, tf.numpy_function), which call Python "
            f"functions of the process that made it; export it with operations of TensorFlow alone"
        )
    if found and not trusted:
        raise UnsupportedModelError(
            f"{folder} has the operations {', '.join(found)}, which read or write files with your rights, or reach "
            f"other processes; if you trust who made it, give trust=True to package_model"
        )
    return bool(found)


def _loaded(tf: Any, folder: Path) -> Any:
    return _read(folder, lambda: tf.saved_model.load(str(folder)))


def _read(folder: Path, read: Callable[[], Any]) -> Any:
    """Return the result of ``read``, which loads a SavedModel.

    Raises:
        UnsupportedModelError: It is damaged, or has an operation that TensorFlow lacks.
        OSError: The disk or store refuses.
    """
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # Damaged files fail in TensorFlow, protobuf and Python in many ways.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        missing = _MISSING_OPERATION.search(str(error))
        if missing is None:
            problem = " ".join(str(error).split())[:500]
            raise UnsupportedModelError(
                f"{folder} cannot be read as a SavedModel ({type(error).__name__}: {problem}); export it again"
            ) from error
        raise UnsupportedModelError(
            f"{folder} has the operation {missing[1]}, which a package such as tensorflow-text adds to TensorFlow; "
            f"export the model without it"
        ) from error


def _function(tf: Any, module: Any, signature: str | None, folder: Path) -> Any:
    """Return the function to call, which takes its arrays by name and returns a dict."""
    found = module.signatures
    chosen = signature
    if chosen is None:
        chosen = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in found else next(iter(found)) if len(found) == 1 else None
    if chosen in found:
        return found[chosen]
    if signature is None and not found and callable(module):
        return _call_of_texts(tf, module, folder)
    raise UnsupportedModelError(
        f"{folder} has the signatures {sorted(found)} but not '{signature or DEFAULT_SIGNATURE}'; name one of them"
    )


def _call_of_texts(tf: Any, module: Any, folder: Path) -> Any:
    def call(*, texts: object) -> dict[str, object]:
        given = module(texts)
        return dict(given) if isinstance(given, Mapping) else {"vectors": given}

    try:
        traced = tf.function(call, autograph=False)
        return traced.get_concrete_function(texts=tf.TensorSpec([None], tf.string, "texts"))
    except (TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{folder} has no signatures, and its call takes no tensor of texts ({error}); save it with a signature"
        ) from error


def _is_compiled(graph: Any) -> bool:
    """Return whether XLA compiles a function of a graph, which ``tf.function(..., jit_compile=True)`` made."""
    functions = graph.as_graph_def().library.function
    return any(function.attr[_COMPILED].b for function in functions if _COMPILED in function.attr)


def tensor_type(name: str, spec: Any) -> ArrayType:
    """Return the array type of a tensor, given any object with a ``dtype`` and a ``shape``."""
    # A shape of unknown rank is assumed to be one value per row; outputs are checked in each call.
    shape = (None,) if spec.shape.rank is None else tuple(spec.shape.as_list())
    return ArrayType(name, ELEMENTS.get(spec.dtype.name), shape, f"a tensor of {spec.dtype.name}")
