"""Linear interfaces of real networks: adapters, attention, gated units, and what optimisers remember of them."""

from ._attention import attention, query_key_norm, value_output
from ._gated import gated
from ._pair import PairReport, pair
from ._transport import transport_gradients, transport_state

__all__ = [
    "PairReport",
    "attention",
    "gated",
    "pair",
    "query_key_norm",
    "transport_gradients",
    "transport_state",
    "value_output",
]
