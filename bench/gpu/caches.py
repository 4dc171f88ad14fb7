"""What the arms read: layers of a paged cache with random contents, queries and lists for each launch."""
import math

import torch

from lists import make_lists
from tables import Lists, Shape


class Caches:
    """Layers of one shape. Pages of a sequence lie in random order; every layer has the same page table, as in an engine."""

    def __init__(self, shape: Shape, layers: int, dtype, seed: int, device: str = "cuda"):
        self.shape, self.dtype, self.device = shape, dtype, device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.pages_per_sequence = -(-shape.kv_len // shape.page_size)
        num_pages = shape.batch * self.pages_per_sequence
        size = (num_pages, shape.page_size, shape.num_kv_heads, shape.head_dim)
        self.layers = [(self.normal(size), self.normal(size)) for _ in range(layers)]  # keys and values, NHD
        self.page_table = torch.randperm(num_pages, device=device, generator=self.generator).int().view(shape.batch, -1)
        self.kv_lens = torch.full((shape.batch,), shape.kv_len, dtype=torch.int32, device=device)
        self.scale = 1 / math.sqrt(shape.head_dim)

    def normal(self, size):
        return torch.empty(size, dtype=self.dtype, device=self.device).normal_(generator=self.generator)

    def slots(self, launches: int):
        """(keys, values, q [batch, 1, num_q_heads, head_dim]) of each launch."""
        shape = self.shape
        q = self.normal((launches, shape.batch, 1, shape.num_q_heads, shape.head_dim))
        return [(*self.layers[i % len(self.layers)], q[i]) for i in range(launches)]

    def rows_of(self, token_ids, lists: Lists):
        """Row of each listed token in the cache seen as [num_pages * page_size * num_kv_heads, head_dim]; -1 stays -1."""
        shape = self.shape
        tokens = token_ids.clamp(min=0).long()
        pages = torch.gather(self.page_table, 1, (tokens // shape.page_size).flatten(1)).view_as(tokens).long()
        heads = torch.arange(lists.num_lists(shape), device=token_ids.device) // (shape.group if lists.scope == "query_head" else 1)
        rows = (pages * shape.page_size + tokens % shape.page_size) * shape.num_kv_heads + heads.view(1, -1, 1)
        return torch.where(token_ids < 0, -1, rows).int()


class SlotLists:
    """Lists of each launch, and the log weights that are read with them (zero, so that all arms compute the same)."""

    def __init__(self, caches: Caches, lists: Lists, launches: int):
        self.lists, self.sets = lists, []
        for _ in range(launches):
            ids, counts, host_counts = make_lists(lists, caches.shape, caches.generator)
            self.sets.append((ids, counts, torch.zeros(ids.shape, dtype=torch.float32, device=ids.device), host_counts))

    @property
    def max_selected(self):
        return self.sets[0][0].shape[2]


def reference(caches: Caches, slot, lists: Lists = None, list_set=None, page_table=None, sequence: int = 0):
    """Attention of one sequence in double precision: [num_q_heads, head_dim]; of the listed tokens, or of all."""
    keys, values, q = slot
    shape = caches.shape
    pages = (caches.page_table if page_table is None else page_table)[sequence].long()
    out = []
    for head in range(shape.num_q_heads):
        kv_head = head // shape.group
        if list_set is None:
            tokens, weights = torch.arange(shape.kv_len, device=caches.device), 0.0
        else:
            ids, counts, log_weight = list_set[:3]
            row = head if lists.scope == "query_head" else kv_head
            count = int(counts[sequence, row])
            tokens, weights = ids[sequence, row, :count].long(), log_weight[sequence, row, :count].double()
        at = pages[tokens // shape.page_size], tokens % shape.page_size, kv_head
        k, v = keys[at].double(), values[at].double()
        p = torch.softmax(k @ q[sequence, 0, head].double() * caches.scale + weights, 0)
        out.append(p @ v)
    return torch.stack(out)


def relative_error(got, expected) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()

