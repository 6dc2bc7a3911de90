"""The rows of a run's plan in the tables of the ledger."""

import time

from mirrorspark.fleet.runs.plan import RunPlan
from mirrorspark.storage import StoragePath


def run_row(plan: RunPlan, target: StoragePath, state: str) -> dict[str, object]:
    """Return the row of a run that begins, or is refused."""
    now = time.time()
    row = {"run_id": plan.run, "output": str(target), "fleet": plan.fleet, "models": len(plan.models)}
    ended = now if state == "refused" else None
    return row | {"microbatches": len(plan.microbatches), "state": state, "began": now, "ended": ended}


def model_rows(plan: RunPlan) -> list[dict[str, object]]:
    """Return a row per model."""
    failed = {one.model for one in plan.failures}
    return [
        {"model": name, "model_group": step.group, "digest": digest, "state": "failed" if name in failed else "sound"}
        for step in plan.steps
        for name, digest in step.digests.items()
    ]


def microbatch_rows(plan: RunPlan) -> list[dict[str, object]]:
    """Return a row per microbatch."""
    return [
        {"number": one.number, "model_group": one.step.group, "step": one.step.number}
        | {"models": len(one.models), "rows": one.share.rows}
        for one in plan.microbatches
    ]
