"""What one barrier task does: start the rank's own process, tie its life to the task's, and report how it ended.

TensorFlow lives in a process of its own (:mod:`training.rank`), never in Spark's reused Python worker: a lost peer can
abort the process from C++, and the collectives of a broken attempt cannot be set up again in the same process.
"""

import json
import signal
import subprocess
from dataclasses import dataclass

from pyspark import BarrierTaskContext, TaskContext

from training import child_process
from training.events import EventClient
from training.plan import TrainingPlan


class RankFailedError(RuntimeError):
    """A rank's process ended badly; the driver has the reason from the rank's own event, or from this message."""


@dataclass(frozen=True)
class RankTask:
    """The training function that MirroredStrategyRunner calls on every barrier task."""

    plan: TrainingPlan

    def __call__(self) -> int:
        """Run the rank to its end and return the number of epochs it completed.

        Raises:
            RankFailedError: The process was killed, or left with an error.
        """
        context = TaskContext.get()
        rank = context.partitionId() if context else 0
        threads = self.plan.threads or (context.cpus() if context else 1)
        environment = child_process.tensorflow_environment(threads, verbose=self.plan.verbose)
        with child_process.start("training.rank", environment) as process:
            tail = child_process.Tail(process.stderr, echo=self.plan.verbose)
            try:
                epochs = self._watch(process, rank, tail)
                if isinstance(context, BarrierTaskContext):
                    # Before any rank leaves: the others would take the end of its connections for a death.
                    context.barrier()
                return epochs
            finally:
                process.kill()  # does nothing to one that has ended
                tail.close()

    def _watch(self, process: subprocess.Popen[str], rank: int, tail: child_process.Tail) -> int:
        assert process.stdout is not None  # noqa: S101 - start() made the pipe
        child_process.tell(process, self.plan.to_json())
        answer = process.stdout.readline()
        if answer:
            result = json.loads(answer)
            if "epochs" in result:
                return int(result["epochs"])
            message = " ".join(result["message"].split())
            raise RankFailedError(f"rank {rank} failed ({result['cause']}): {result['type']}: {message}")
        status = process.wait()
        if status < 0:
            self._report_death(rank, -status)
            raise RankFailedError(f"rank {rank} was killed by signal {-status}")
        raise RankFailedError(f"rank {rank} left with status {status}\n" + tail.text())

    def _report_death(self, rank: int, number: int) -> None:
        """Tell the driver at once; Spark's own message arrives later and names no rank."""
        events = EventClient(self.plan.events, rank, self.plan.attempt)
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        # TensorFlow aborts a process whose peer is gone, so an abort is more often a consequence than a cause.
        cause = "peer" if number == signal.SIGABRT else "lost"
        events.send({"event": "error", "cause": cause, "type": "killed", "message": f"killed by signal {name}"})
        events.close()
