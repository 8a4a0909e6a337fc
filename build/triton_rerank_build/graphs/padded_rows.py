"""A padded network that takes rows of any lengths end to end, as GPU servers send them (see `packed`).

For networks without a packed form: the rows are padded to the longest of the batch inside the graph.
"""

import torch
from torch import Tensor, nn

from triton_rerank_build.graphs.packed import grid_columns, row_index

INNER = "network."
"""What the names of the padded network's weights begin with here."""


class PaddedRows(nn.Module):
    """The exported network.

    Args:
        graph: The padded network. Its parameters are shared.
    """

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.network = graph  # not `graph`: torch's tracer has an attribute of that name

    def forward(self, input_ids: Tensor, attention_mask: Tensor, row_length: Tensor) -> Tensor:
        """As `PackedGraph.forward`."""
        columns = grid_columns(row_length)
        index, inside = row_index(row_length, columns)
        ids = torch.index_select(input_ids, 0, index.flatten()).view(index.shape)
        mask = torch.index_select(attention_mask, 0, index.flatten()).view(index.shape)
        # A row has a first token, whatever its mask says, as in `PackedGraph`: the rows of Triton's warm-up have none.
        mask = torch.where((columns == 0) & (mask == 0), 1, torch.where(inside, mask, 0))
        logits: Tensor = self.network(ids, mask)
        return logits
