"""Backend for files of Keras 2 (tf-keras): ``.keras`` and ``.h5``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mirrorspark.scoring.backends.libraries import library
from mirrorspark.scoring.backends.protocol import Signature, UnsupportedModelError, with_rank
from mirrorspark.scoring.backends.saved_model import tensor_type
from mirrorspark.scoring.backends.tensorflow_runtime import compute_threads, start_tensorflow


class KerasBackend:
    """A tf-keras model, called as one graph; ``model.predict`` takes several times as long for a batch."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Load the model; imports TensorFlow and tf-keras.

        Args:
            path: The file.
            threads: Ignored: TensorFlow uses the threads of the process (:func:`limit_tensorflow`).

        Raises:
            UnsupportedModelError: The file is not a tf-keras model, or the model has no inputs or keeps state between
                calls.
            ModuleNotFoundError: A library is not installed here.
        """
        tf = start_tensorflow()
        keras = library("tf_keras", f"the model {path.name} needs tf-keras")
        self.threads = compute_threads(tf)
        try:
            model = keras.models.load_model(path, compile=False)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            # Files of Keras 3 have other classes and settings, which fail in tf-keras in several ways.
            raise UnsupportedModelError(
                f"{path} cannot be read by tf-keras {keras.__version__} ({error}); of Keras 3, or with classes of "
                f"your own, export a SavedModel (model.export) and give that"
            ) from error
        if not getattr(model, "inputs", None):
            raise UnsupportedModelError(f"{path}: the model has no inputs yet; call it once before you save it")
        if model.stateful:
            raise UnsupportedModelError(
                f"{path}: the model keeps a state from call to call, so that scores would depend on the rows before "
                f"them; save it with stateful=False"
            )
        specs = dict(zip(model.input_names, model.inputs, strict=True))
        results = dict(zip(model.output_names, model.outputs, strict=True))
        self.signature = Signature(
            tuple(tensor_type(name, spec) for name, spec in specs.items()),
            tuple(tensor_type(name, spec) for name, spec in results.items()),
            texts_are_bytes=True,
        ).with_rows()
        self._ranks = [spec.shape.rank for spec in specs.values()]
        self._to_tensor = tf.constant

        def call(*tensors: object) -> dict[str, object]:
            given = model(list(tensors) if len(tensors) > 1 else tensors[0], training=False)
            return dict(zip(results, tf.nest.flatten(given), strict=True))

        self._call = tf.function(call, autograph=False).get_concrete_function(
            *(tf.TensorSpec(spec.shape, spec.dtype) for spec in specs.values())
        )
        self._model = model  # keeps its variables alive

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the named outputs."""
        arrays = [inputs[array.name] for array in self.signature.inputs]
        given = self._call(*(self._to_tensor(with_rank(*pair)) for pair in zip(arrays, self._ranks, strict=True)))
        return {name: given[name].numpy() for name in outputs}
