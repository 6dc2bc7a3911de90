"""The objects that a worker gives to its training: events, the ranks' rendezvous, activity, and stop requests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mirrorspark.training.executor.training_hook import TrainingHook
from mirrorspark.training.protocol.messages import EventClient, StopSignal
from mirrorspark.training.protocol.outcomes import Activity
from mirrorspark.training.protocol.ring import Rendezvous

Outcome = dict[str, Any]

# Takes the number of completed epochs and further values for the driver, and answers; does not return in a worker.
Finish = Callable[..., None]


@dataclass(frozen=True)
class WorkerControl:
    """The training's access to its worker.

    Attributes:
        events: Sends events to the driver.
        stop_request: Request to stop; workers may see it at different steps, and must agree on one.
        activity: Current activity, sent to the driver every two seconds.
        payload: Bytes that came with the plan, for a training that is not ours.
        rendezvous: Exchanges the addresses of the ranks.
        hook: Changes callbacks and training data, for a test or a measurement.
    """

    rank: int
    events: EventClient
    stop_request: StopSignal
    activity: Activity
    payload: bytes | None = None
    rendezvous: Rendezvous | None = None
    hook: TrainingHook = field(default_factory=TrainingHook)
