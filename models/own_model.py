"""A user's own model: a function or a Keras class of a notebook or a file, sent to the workers by value."""

import base64
import contextlib
import hashlib
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import cloudpickle  # type: ignore[import-untyped]

from mirrorspark.data_pipelines.features.fitted import FittedFeatures
from mirrorspark.models.settings import ModelSettingsError

if TYPE_CHECKING:  # the driver sends a model without loading TensorFlow
    import tensorflow as tf
    import tf_keras

# The name of the architecture is this and the task.
PREFIX = "own_"
# The task by the kind of its label.
TASKS = {"binary": "binary", "multi_class": "multi_class", "multi_label": "multi_label", "number": "regression"}
NAMES = tuple(PREFIX + task for task in TASKS.values())

_OURS = ("mirrorspark", "pyspark_tfrecord")
_LONGEST_NAME = 60


@dataclass(frozen=True)
class OwnSettings:
    """What the workers need of the model.

    Attributes:
        function: Name of the function or class.
        digest: Sixteen hex digits that change with its source, and with that of what it uses.
        code: The pickled function and callbacks, as text.
    """

    function: str = ""
    digest: str = ""
    code: str = ""


@dataclass(frozen=True)
class OwnArchitecture:
    """An architecture of :mod:`models.catalog` whose model the user builds."""

    TASK: str
    Settings: type = OwnSettings

    def build(self, settings: OwnSettings, fitted: FittedFeatures, seed: int) -> "tf_keras.Model":
        """Return the user's model, with its weights created.

        Raises:
            ModelSettingsError: What the function returns is no model of tf-keras.
        """
        from mirrorspark.models.layers import symbolic_inputs
        from mirrorspark.models.objectives import ScaledLoss

        model = _unpickled(settings)[0](fitted)
        _require_tf_keras(model, settings.function)
        if self.TASK == "regression":
            scale = fitted.statistics[fitted.spec.label.name].standard_deviation or 1.0
            model.regression_loss = ScaledLoss("squared", scale)  # if it has no loss of its own
        model.own_compilation = getattr(model, "optimizer", None) is not None
        if not model.built:  # A class creates its weights when it is called.
            model(symbolic_inputs(fitted.spec.query_features))
        self._require_width(model, settings.function, fitted)
        return model

    def _require_width(self, model: "tf_keras.Model", function: str, fitted: FittedFeatures) -> None:
        """Check the number of outputs per row, which a loss would complain of in many pages."""
        needed = fitted.classes if self.TASK in ("multi_class", "multi_label") else 1
        shape = getattr(model, "output_shape", None)  # a class of the user's own may not know it
        if isinstance(shape, tuple) and len(shape) == 2 and shape[1] not in (None, needed):
            raise ModelSettingsError(
                f"{function} returns a model with {shape[1]} outputs per row, and the label '{fitted.spec.label.name}' "
                f"of kind {fitted.spec.label.kind} needs {needed}: end it with Dense({needed})"
            )

    def predict(self, model: "tf_keras.Model", inputs: Mapping[str, "tf.Tensor"]) -> dict[str, "tf.Tensor"]:
        """Return ``score``, float32 ``[batch]``, or ``scores``, float32 ``[batch, classes]``."""
        import tensorflow as tf

        outputs = tf.cast(model(inputs, training=False), tf.float32)
        if self.TASK != "regression" and returns_logits(model):
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
        build: A function from the fitted features to a model of tf-keras, or a subclass of ``tf_keras.Model`` with that
            one argument. A model without a loss returns logits, and gets the loss of the label's kind and the
            configured optimizer. A compiled one keeps its own loss, metrics and optimizer, and returns probabilities,
            unless its loss says ``from_logits=True``.
        label_kind: Kind of the label.
        callbacks: Keras callbacks; each worker gets a copy of each.

    Raises:
        ModelSettingsError: ``build`` cannot be called with the features, the label's kind is not supported, or
            something it uses cannot be pickled.
    """
    name = getattr(build, "__qualname__", type(build).__name__)
    if not callable(build):
        raise ModelSettingsError(f"model {build!r} is no function; give one from the features to a Keras model")
    if label_kind not in TASKS:
        raise ModelSettingsError(
            f"an own model cannot learn a label of kind {label_kind} yet; it can learn {list(TASKS)}"
        )
    given = (build, tuple(callbacks))
    with _modules_by_value():
        try:
            pickled = cloudpickle.dumps(given)
        except Exception as error:
            raise ModelSettingsError(
                f"model {name} cannot be sent to the workers: {error}; create what it needs inside the function"
            ) from error
    options = OwnSettings(name[:_LONGEST_NAME], digest(given), base64.b85encode(pickled).decode())
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
    if hasattr(loss, "from_logits"):
        return bool(loss.from_logits)
    return bool(getattr(loss, "_fn_kwargs", {}).get("from_logits", False))


def keep_compilation(model: "tf_keras.Model", steps_per_execution: int) -> None:
    """Compile a model that the user has compiled once more, so that rows of weight 0 count in no metric.

    Args:
        model: The compiled model; its optimizer, loss and metrics are kept.
        steps_per_execution: Steps that TensorFlow runs before it returns to Python.
    """
    metrics, loss = model.compiled_metrics, model.compiled_loss
    model.compile(
        optimizer=model.optimizer,
        loss=model.loss,
        loss_weights=loss._user_loss_weights,
        # Batches are filled up with rows of weight 0.
        weighted_metrics=[*(metrics._user_metrics or ()), *(metrics._user_weighted_metrics or ())],
        steps_per_execution=steps_per_execution,
    )


def digest(value: Any) -> str:
    """Return sixteen hex digits that change with the source of functions and classes, and of what they use."""
    found: dict[int, str] = {}
    _describe(value, found)
    return hashlib.sha256("\n".join(found.values()).encode()).hexdigest()[:16]


def _describe(value: Any, found: dict[int, str]) -> None:
    """Add a text for a value and for all that it refers to, once each, in the order of their first use."""
    if id(value) in found:
        return
    if isinstance(value, ModuleType):
        found[id(value)] = f"module {value.__name__}"
    elif isinstance(value, FunctionType | type) and _is_sent(value.__module__):
        found[id(value)] = _source(value)
        for used in _used(value):
            _describe(used, found)
    elif isinstance(value, FunctionType | type) or (callable(value) and hasattr(value, "__qualname__")):
        found[id(value)] = f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, list | tuple | set | frozenset | Mapping):
        found[id(value)] = type(value).__name__
        for part in value.items() if isinstance(value, Mapping) else value:
            _describe(part, found)
    elif isinstance(value, str | bytes | int | float | complex | bool | None):
        found[id(value)] = repr(value)
    else:
        found[id(value)] = type(value).__qualname__
        _describe(type(value), found)
        _describe(getattr(value, "__dict__", {}), found)


def _used(value: FunctionType | type) -> list[Any]:
    """Return what a function or class refers to: globals, captured variables, defaults, bases and members."""
    if isinstance(value, type):
        members = [member for name, member in vars(value).items() if not name.startswith("__") or name == "__init__"]
        return [*value.__bases__, *(getattr(member, "__func__", member) for member in members if callable(member))]
    captured = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    named = [value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__]
    return [*named, *captured, value.__defaults__, value.__kwdefaults__]


def _names(code: CodeType) -> list[str]:
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return [*code.co_names, *inner]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # not assigned yet
        return False


def _source(value: FunctionType | type) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # typed into an interpreter
        return (
            repr(value.__code__.co_code + repr(value.__code__.co_consts).encode()) if hasattr(value, "__code__") else ""
        )


def _is_sent(module: str) -> bool:
    """Return whether what is defined in a module is sent by value: the module is the notebook, or not installed."""
    if module == "__main__":
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if module.split(".")[0] in _OURS or file is None:
        return False
    return not file.startswith(_installed())


@cache
def _installed() -> tuple[str, ...]:
    """Return the folders of Python's and of installed packages' modules."""
    return tuple(f"{path}{os.sep}" for path in sysconfig.get_paths().values())


@contextlib.contextmanager
def _modules_by_value() -> Iterator[None]:
    """Pickle what is defined in modules that are not installed by value, within the block."""
    modules = [module for name, module in list(sys.modules.items()) if name != "__main__" and _is_sent(name)]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _unpickled(settings: OwnSettings) -> tuple[Callable[[FittedFeatures], Any], tuple[Any, ...]]:
    found: tuple[Callable[[FittedFeatures], Any], tuple[Any, ...]] = cloudpickle.loads(base64.b85decode(settings.code))
    return found


def _require_tf_keras(model: Any, name: str) -> None:
    import tf_keras

    if isinstance(model, tf_keras.Model):
        return
    kinds = {kind.__module__.split(".")[0] for kind in type(model).__mro__}
    if "keras" in kinds:
        raise ModelSettingsError(
            f"{name} returns a model of Keras 3, which TensorFlow's distribution strategies do not train; build it "
            f"with tf_keras: import tf_keras as keras"
        )
    raise ModelSettingsError(f"{name} returns {type(model).__name__}; return a tf_keras.Model")
