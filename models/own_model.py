"""A user's own model: a function or a Keras class of a notebook or a file, sent to the workers by value."""

import base64
import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cloudpickle  # type: ignore[import-untyped]

from mirrorspark.data_pipelines.features import FittedFeatures
from mirrorspark.models import keras3
from mirrorspark.models.code_digests import code_digest, is_sent
from mirrorspark.models.settings import ModelSettingsError

if TYPE_CHECKING:  # the driver sends a model without loading TensorFlow
    import tensorflow as tf
    import tf_keras

# The name of the architecture is this and the task.
PREFIX = "own_"
# The task by the kind of its label.
TASKS = {
    "binary": "binary",
    "candidate": "retrieval",
    "multi_class": "multi_class",
    "multi_label": "multi_label",
    "numeric": "regression",
}
NAMES = tuple(PREFIX + task for task in TASKS.values())

_LONGEST_NAME = 60


@dataclass(frozen=True)
class OwnSettings:
    """The parts of the model that the workers need.

    Attributes:
        function: Name of the function or class.
        digest: Sixteen hex digits that change with its source, and with that of the code that it uses.
        code: The pickled function and callbacks, as text.
        of_keras3: The function uses Keras 3 and no tf-keras.
    """

    function: str = ""
    digest: str = ""
    code: str = ""
    of_keras3: bool = False


@dataclass(frozen=True)
class OwnArchitecture:
    """An architecture of :mod:`models.catalog` whose model the user builds."""

    TASK: str
    Settings: type = OwnSettings

    @property
    def READS_ITEMS(self) -> bool:  # noqa: N802 - as the constant of an architecture
        """True if candidates may have features, which the model finds in ``fitted.items``."""
        return self.TASK == "retrieval"

    def build(self, settings: OwnSettings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
        """Return the user's model, with its weights created.

        Raises:
            ModelSettingsError: The function does not return a model of tf-keras or Keras 3, or not one for the label.
        """
        from mirrorspark.models import own_recommender
        from mirrorspark.models.fitting import ScaledLoss
        from mirrorspark.models.layers.input import symbolic_inputs

        built = _unpickled(settings)[0](fitted)
        model, form = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
        keras = _keras_of(model, settings.function)
        if form is not None and keras.__name__ == "tf_keras":
            raise ModelSettingsError(
                f"{settings.function} returns a model of tf-keras and a function of rows, which goes with a model of "
                f"Keras 3: return the model alone, which is given columns by name"
            )
        if own_recommender.is_recommender(model):
            model.own_compilation = getattr(model, "optimizer", None) is not None
            own_recommender.prepare(model, self.TASK, fitted, settings.function)
            return model
        is_keras3, given = keras3.is_keras3(model), None
        if is_keras3:
            given = keras3.prepare(model, form, self.TASK, fitted, settings.function)
        elif self.TASK == "retrieval":
            raise ModelSettingsError(
                f"{settings.function} returns {type(model).__name__}, and a label of kind candidate needs a model of "
                f"TensorFlow Recommenders; extend tfrs.Model, and let compute_loss call tfrs.tasks.Retrieval"
            )
        if self.TASK == "regression":
            scale = fitted.statistics[fitted.spec.label.name].standard_deviation or 1.0
            model.regression_loss = ScaledLoss("squared", scale)  # if it has no loss of its own
        model.own_compilation = getattr(model, "optimizer", None) is not None
        if self.TASK == "retrieval":
            return model
        if not model.built:  # A class creates its weights when it is called.
            given = model(symbolic_inputs(fitted.spec.query_features, keras=keras))
        if is_keras3 and isinstance(given, Mapping):
            given = _output_of_label(model, given, settings.function, fitted)
        if is_keras3 and self.TASK in ("binary", "regression"):
            # Its losses and metrics do not bring labels and outputs into one form, or multiply all pairs of rows.
            shape: Any = getattr(model, "output_shape", None) or getattr(given, "shape", ())
            model.has_column = len(shape) == 2
        self._require_width(model, settings.function, fitted)
        if model.own_compilation:
            _require_known_loss(model.loss, settings.function, keras)
        return model

    def _require_width(self, model: "tf_keras.Model", function: str, fitted: FittedFeatures) -> None:
        """Check the number of outputs per row, which a loss would complain of in many pages."""
        needed = fitted.classes if self.TASK in ("multi_class", "multi_label") else 1
        shape = getattr(model, "output_shape", None)  # a class of the user's own may not know it
        wanted = f"the label '{fitted.spec.label.name}' of kind {fitted.spec.label.kind} needs {needed}"
        if isinstance(shape, list | Mapping):
            raise ModelSettingsError(
                f"{function} returns a model with {len(shape)} outputs, and {wanted} per row, in one output: return it "
                f"alone"
            )
        if not isinstance(shape, tuple):
            return
        if len(shape) > 2:
            raise ModelSettingsError(
                f"{function} returns a model with outputs of shape {list(shape)}, and {wanted} per row: end it with "
                f"Flatten() and Dense({needed})"
            )
        if len(shape) == 2 and shape[1] not in (None, needed):
            raise ModelSettingsError(
                f"{function} returns a model with {shape[1]} outputs per row, and {wanted}: end it with Dense({needed})"
            )

    def predict(self, model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> Any:
        """Return ``score``, float32 ``[batch]``, or ``scores``, float32 ``[batch, classes]``.

        For a candidate label they are the query's vectors, float32 ``[batch, dim]``, alone.
        """
        import tensorflow as tf

        if self.TASK == "retrieval":
            return model.own_tasks.query_vectors(inputs)
        if hasattr(model, "own_tasks"):
            outputs, loss = model.own_tasks.predictions(inputs)
            are_logits = takes_logits(loss)
        else:
            outputs, are_logits = tf.cast(_outputs(model, inputs), tf.float32), returns_logits(model)
        if self.TASK != "regression" and are_logits:
            outputs = tf.nn.softmax(outputs) if self.TASK == "multi_class" else tf.sigmoid(outputs)
        if self.TASK in ("binary", "regression"):
            return {"score": tf.reshape(outputs, [tf.shape(outputs)[0]])}
        return {"scores": outputs}

    def callbacks(self, settings: OwnSettings) -> list[Any]:
        """Return the user's callbacks."""
        return list(_unpickled(settings)[1])


def own_model(build: Callable[[FittedFeatures], Any], label_kind: str, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Return the value of ``TrainingConfig.model`` for a model of the user's own.

    The function, the callbacks and all that they use of the notebook, or of modules that are not installed, are pickled
    by value: the workers need no file, and each call sends what is defined now.

    Args:
        build: A function from the fitted features to a model of tf-keras or Keras 3, or a subclass of ``Model`` with
            that one argument. A model without a loss returns logits, and gets the loss of the label's kind and the
            configured optimizer. A compiled one keeps its own loss, metrics and optimizer, and returns probabilities,
            unless its loss says ``from_logits=True``. A candidate label needs a ``tfrs.Model``, which computes its own
            loss (:mod:`models.own_recommender`), or one of Keras Recommenders (:mod:`models.keras3.rows`). With a model
            of Keras 3 it may return the function from the columns of rows to what the model takes: ``(model, rows)``.
        label_kind: Kind of the label.
        callbacks: Keras callbacks; each worker gets a copy of each.

    Raises:
        ModelSettingsError: ``build`` cannot be called with the features, something it uses cannot be pickled, or a
            callback changes what a checkpoint saves.
    """
    name = getattr(build, "__qualname__", type(build).__name__)
    if not callable(build):
        raise ModelSettingsError(f"model {build!r} is not a function; give one from the features to a Keras model")
    _require_function_of_features(build, name)
    if any(getattr(one, "swap_on_epoch", False) for one in callbacks):
        raise ModelSettingsError(
            "SwapEMAWeights(swap_on_epoch=True) would save averages as the weights from which a training resumes; "
            "leave swap_on_epoch out: the averages are exported in any case"
        )
    given = (build, tuple(callbacks))
    with _modules_by_value():
        try:
            pickled = cloudpickle.dumps(given)
        except Exception as error:
            raise ModelSettingsError(
                f"model {name} cannot be sent to the workers: {error}; create its objects inside the function"
            ) from error
    code = base64.b85encode(pickled).decode()
    options = OwnSettings(name[:_LONGEST_NAME], code_digest(given), code, keras3.is_code_of_keras3(build))
    return {"name": PREFIX + TASKS[label_kind], **vars(options)}


def architecture(name: str) -> OwnArchitecture:
    """Return the architecture of one of ``NAMES``."""
    return OwnArchitecture(name.removeprefix(PREFIX))


def without_code(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a model without the pickled code, which no reader can use."""
    return {key: value for key, value in model.items() if key != "code"} if is_own(model) else dict(model)


def is_own(model: Mapping[str, Any]) -> bool:
    """Return whether these are the settings of a user's own model."""
    return model.get("name") in NAMES


def returns_logits(model: "tf_keras.Model") -> bool:
    """Return whether the outputs are logits: those of a model without a loss, or with a loss from logits."""
    loss = getattr(model, "loss", None)
    if loss is None or not model.own_compilation:
        return True
    while isinstance(loss, list | tuple | Mapping) and len(loss) == 1:  # one loss for the one output
        (loss,) = loss.values() if isinstance(loss, Mapping) else loss
    return takes_logits(loss)


def takes_logits(loss: Any) -> bool:
    """Return whether a loss is one of logits."""
    if hasattr(loss, "from_logits"):
        return bool(loss.from_logits)
    return bool(getattr(loss, "_fn_kwargs", {}).get("from_logits", False))


def _outputs(model: Any, inputs: Mapping[str, Any]) -> Any:
    """Return the outputs of rows, of several those of the label."""
    if not keras3.is_keras3(model):
        return model(inputs, training=False)
    rows = getattr(model, "own_rows", None)
    given = model(keras3.inputs_of(model, inputs) if rows is None else rows.inputs(inputs), training=False)
    return given[model.own_output] if hasattr(model, "own_output") else given


def _output_of_label(model: Any, outputs: Mapping[str, Any], function: str, fitted: FittedFeatures) -> Any:
    """Return the output that has the label's name, which is the score of rows."""
    name = fitted.spec.label.name
    if name not in outputs:
        raise ModelSettingsError(
            f"{function} returns a model with outputs {sorted(outputs)}; give the one that predicts the label the name "
            f"'{name}'"
        )
    model.own_output = name
    return outputs[name]


def keep_compilation(model: "tf_keras.Model", steps_per_execution: int) -> None:
    """Compile a user's compiled model once more, so that padding counts in no metric and no loss.

    Args:
        model: The compiled model; its optimizer, loss and metrics are kept.
        steps_per_execution: Steps that TensorFlow runs before it returns to Python.
    """
    from mirrorspark.models.fitting import count_real_rows

    if keras3.is_keras3(model):
        model.steps_per_execution = steps_per_execution
        kept = model._compile_metrics
        keras3.count_real_rows(model, kept and _joined(kept._user_metrics, kept._user_weighted_metrics))
        return
    metrics, loss = model.compiled_metrics, model.compiled_loss
    model.compile(
        optimizer=model.optimizer,
        loss=model.loss,
        loss_weights=loss._user_loss_weights,
        # Batches are filled up with rows of weight 0.
        weighted_metrics=_joined(metrics._user_metrics, metrics._user_weighted_metrics),
        steps_per_execution=steps_per_execution,
        run_eagerly=model._run_eagerly,
    )
    count_real_rows(model)


def _joined(metrics: Any, more: Any) -> Any:
    """Return both in a form of Keras: a metric, a list of metrics, or a mapping from outputs to such."""
    if metrics is None or more is None:
        return more if metrics is None else metrics
    if isinstance(metrics, Mapping) and isinstance(more, Mapping):
        return {name: _joined(metrics.get(name), more.get(name)) for name in {**metrics, **more}}
    listed = [value if isinstance(value, list | tuple) else [value] for value in (metrics, more)]
    return [metric for part in listed for metric in part]


@contextlib.contextmanager
def _modules_by_value() -> Iterator[None]:
    """Pickle definitions of modules that are not installed by value, within the block."""
    modules = [module for name, module in list(sys.modules.items()) if name != "__main__" and is_sent(name)]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _require_function_of_features(build: Callable[..., Any], name: str) -> None:
    """Raise on the driver the errors that the workers would raise many seconds later."""
    origins = {kind.__module__.split(".")[0] for kind in type(build).__mro__}
    if not isinstance(build, type) and origins & {"keras", "tf_keras"}:
        raise ModelSettingsError(
            f"model is a {name} that is built already; give the function or class that builds it: the features are "
            f"fitted first, and each worker builds its own"
        )
    try:
        signature = inspect.signature(build)
    except ValueError:  # written in C, without a signature
        return
    try:
        signature.bind(None)
    except TypeError:
        raise ModelSettingsError(
            f"model {name}{signature} cannot be called with one argument, the fitted features; define it as "
            f"def build(features)"
        ) from None


def _require_known_loss(loss: Any, function: str, keras: Any) -> None:
    """Check a loss that is given by its name, which Keras looks up within the first step."""
    if not isinstance(loss, str) or loss in ("crossentropy", "ce"):  # of the labels' and the outputs' shapes
        return
    try:
        keras.losses.get(loss)
    except ValueError:
        name = "tf-keras" if keras.__name__ == "tf_keras" else "Keras 3"
        raise ModelSettingsError(
            f"{function} compiles its model with the loss '{loss}', which {name} does not know; use a name or class "
            f"of {keras.__name__}.losses"
        ) from None


def _unpickled(settings: OwnSettings) -> tuple[Callable[[FittedFeatures], Any], tuple[Any, ...]]:
    found: tuple[Callable[[FittedFeatures], Any], tuple[Any, ...]] = cloudpickle.loads(base64.b85decode(settings.code))
    return found


def _keras_of(model: Any, name: str) -> Any:
    """Return the module of the Keras that a model is of."""
    import tf_keras

    if isinstance(model, tf_keras.Model):
        return tf_keras
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(model, keras.Model):
        raise ModelSettingsError(f"{name} returns {type(model).__name__}; return a model of Keras")
    keras3.require_tensorflow(name)
    return keras
