"""The layers that the architectures share: embeddings, heads, dropout and inputs.

Random layers count their calls, and a resumed training continues their sequence of numbers from its checkpoint.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.models.layers import recurrent, tabular
    from mirrorspark.models.layers.attention import CausalStates, StateAtEnd
    from mirrorspark.models.layers.heads import OrdinalHead, SoftmaxHeads, TwoWayHeads
    from mirrorspark.models.layers.members import (
        MemberLoss,
        is_ensemble,
        mean_class_logits,
        mean_log_odds,
        mean_numbers,
        of_all,
    )
    from mirrorspark.models.layers.resumable import CountedCalls, ResumableDropout
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CausalStates",
    "CountedCalls",
    "MemberLoss",
    "OrdinalHead",
    "ResumableDropout",
    "SoftmaxHeads",
    "StateAtEnd",
    "TwoWayHeads",
    "is_ensemble",
    "mean_class_logits",
    "mean_log_odds",
    "mean_numbers",
    "of_all",
    "recurrent",
    "tabular",
]
