"""Token lists in the patterns that are measured. torch; on any device."""
import torch

from tables import Lists, Shape, counts_of

RUN_TOKENS = 64  # of a clustered run
CHUNK_ELEMENTS = 1 << 28  # random numbers held at once


def _uniform(num_rows: int, kv_len: int, count: int, generator):
    """[num_rows, count] i32: distinct tokens, in random order."""
    step = max(1, CHUNK_ELEMENTS // kv_len)
    parts = [torch.rand(min(step, num_rows - row), kv_len, device=generator.device, generator=generator).topk(count, dim=1, sorted=True).indices
             for row in range(0, num_rows, step)]
    return torch.cat(parts).int()


def _clustered(num_rows: int, kv_len: int, count: int, generator):
    """[num_rows, count] i32: runs of RUN_TOKENS neighbours at random places; the last run is cut."""
    run = min(RUN_TOKENS, kv_len)
    num_runs = min(-(-count // run), kv_len // run)
    starts = _uniform(num_rows, kv_len // run, num_runs, generator) * run
    tokens = (starts.unsqueeze(2) + torch.arange(run, dtype=torch.int32, device=generator.device)).flatten(1)
    return tokens[:, :count] if tokens.shape[1] >= count else _uniform(num_rows, kv_len, count, generator)


def make_lists(lists: Lists, shape: Shape, generator):
    """(token_ids [batch, num_lists, max_selected] i32, counts [batch, num_lists] i32, host counts as a list of lists). Entries past
    a count are -1. Ids ascend, but for the pattern "unsorted"."""
    counts = [counts_of(lists, shape, sequence) for sequence in range(shape.batch)]
    longest = max(max(row) for row in counts)
    num_rows = shape.batch * lists.num_lists(shape)
    make = _clustered if lists.pattern == "clustered" else _uniform
    ids = make(num_rows, shape.kv_len, longest, generator)
    device_counts = torch.tensor(counts, dtype=torch.int32, device=generator.device)
    beyond = torch.arange(longest, device=generator.device) >= device_counts.view(-1, 1)
    if lists.pattern != "unsorted":
        # A cut list keeps its random order's first tokens, sorted; what lies beyond sorts to the end.
        ids = ids.masked_fill(beyond, 2**31 - 1).sort(dim=1).values
    ids = ids.masked_fill(beyond, -1)
    return ids.view(shape.batch, -1, longest).contiguous(), device_counts, counts
