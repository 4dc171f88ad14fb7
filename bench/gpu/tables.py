"""What is measured: the tables, their cases, and the bytes and the ceiling of each. Standard library only."""
import dataclasses
import math
import random

LAUNCH_US = 5.0  # of the ceiling: launches and dependent stages of one operation
ENTRY_BYTES = 8  # of a list: token id and log weight
ELEMENT_BYTES = 2  # f16, bf16
BATCHES = (1, 4, 8, 16)


@dataclasses.dataclass(frozen=True)
class Shape:
    num_q_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    kv_len: int = 131072
    batch: int = 1
    page_size: int = 16

    @property
    def group(self):
        return self.num_q_heads // self.num_kv_heads

    @property
    def layer_bytes(self):
        """Keys and values of all sequences in one layer."""
        return 2 * ELEMENT_BYTES * self.batch * self.kv_len * self.num_kv_heads * self.head_dim


@dataclasses.dataclass(frozen=True)
class Lists:
    scope: str = "kv_head"
    sparsity: float = 50
    pattern: str = "uniform"  # uniform, clustered, unsorted, skewed

    def num_lists(self, shape):
        return shape.num_kv_heads if self.scope == "kv_head" else shape.num_q_heads


@dataclasses.dataclass(frozen=True)
class Case:
    """One cache and all lists that are measured on it; none: dense only."""
    shape: Shape
    lists: tuple


def counts_of(lists: Lists, shape: Shape, sequence: int = 0):
    """Tokens in each list of one sequence. Skewed: one head has ten times the tokens of another, the same total."""
    num_lists, mean = lists.num_lists(shape), max(1, round(shape.kv_len / lists.sparsity))
    if lists.pattern != "skewed" or num_lists == 1:
        return [mean] * num_lists
    shares = [1 + 9 * i / (num_lists - 1) for i in range(num_lists)]
    exact = [mean * num_lists * share / sum(shares) for share in shares]
    if max(exact) > shape.kv_len:
        raise ValueError(f"skewed lists at {lists.sparsity}x need a list of {max(exact):.0f} tokens of {shape.kv_len}")
    counts = [math.floor(x) for x in exact]
    for i in range(mean * num_lists - sum(counts)):  # what rounding down left, to the longest lists
        counts[-1 - i % num_lists] += 1
    random.Random(sequence).shuffle(counts)
    return counts


def sparse_bytes(lists: Lists, shape: Shape) -> int:
    """Rows of the lists, each read once, and the lists."""
    row_bytes = 2 * ELEMENT_BYTES * shape.head_dim
    return shape.batch * sum(counts_of(lists, shape)) * (row_bytes + ENTRY_BYTES)


def ceiling_us(num_bytes: int, read_tb_s: float) -> float:
    return num_bytes / (read_tb_s * 1e6) + LAUNCH_US


def _cases(shapes, lists):
    return [Case(shape, tuple(lists)) for shape in shapes]


def _lists(scope, sparsities, pattern="uniform"):
    return [Lists(scope, sparsity, pattern) for sparsity in sparsities]


def table(name: str):
    if name == "main":
        return _cases([Shape(batch=batch) for batch in BATCHES],
                      _lists("kv_head", (5, 10, 20, 50, 100, 500)) + _lists("query_head", (50, 100, 500)))
    if name == "dense":
        return _cases([Shape(batch=batch, kv_len=kv_len) for kv_len in (32768, 131072) for batch in BATCHES], [])
    if name == "lengths":
        return _cases([Shape(batch=batch, kv_len=kv_len) for kv_len in (8192, 32768, 524288) for batch in BATCHES],
                      _lists("kv_head", (5, 10, 20, 50, 100, 500)))
    if name == "shapes":
        heads = ((32, 8, 64), (16, 4, 256), (32, 32, 128), (64, 8, 128))
        return _cases([Shape(*head, batch=batch) for head in heads for batch in BATCHES], _lists("kv_head", (20, 50, 100)))
    if name == "patterns":
        return _cases([Shape(batch=batch) for batch in (1, 4, 16)],
                      [Lists("kv_head", sparsity, pattern) for sparsity in (50, 100)
                       for pattern in ("uniform", "clustered", "unsorted", "skewed")])
    if name == "sweep":
        return _cases([Shape(batch=batch, kv_len=2 ** power) for batch in (1, 8) for power in range(9, 18)],
                      _lists("kv_head", (1, 2, 3, 5, 10, 20, 50, 100)))
    raise ValueError(f"--table: expected one of {', '.join(TABLES)}, got {name!r}")


TABLES = ("main", "dense", "lengths", "shapes", "patterns", "sweep")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How often a graph launches, and over how many caches of its own."""
    layers: int
    launches: int


COLD_BYTES = 256 << 20  # several times the L2: a layer whose launches are that far apart is cold again


LAUNCHES, MOST_LAUNCHES = 24, 96  # of one graph
GRAPH_START_US = 10  # taken for what passes from the event before a replay to its first launch: on an H200 lists of 262 tokens took 5.04 us each
                     # in 24 launches here, and 4.78 in the 64 of bench/cuda/decode_time


def launches_of(us: float) -> int:
    """As many launches of about `us` microseconds that the start of their graph is 1 % of them, or 2 % of the shortest."""
    return max(LAUNCHES, min(MOST_LAUNCHES, math.ceil(GRAPH_START_US / (0.01 * us))))


def graph_sizes(shape: Shape, launches: int, memory_bytes: int, reuse: bool) -> Sizes:
    """Each launch reads a layer of its own while memory lasts. After that layers are used again if what lies between two uses
    (for lists of their own, `reuse`, nearly every row of every launch) is several times the L2; else there are fewer launches."""
    layers = max(1, min(launches, memory_bytes // shape.layer_bytes))
    if layers == launches or reuse or layers * shape.layer_bytes >= COLD_BYTES:
        return Sizes(layers, launches)
    return Sizes(layers, layers)


def list_sizes(shape: Shape, layers: int, us: float) -> Sizes:
    """Launches of about `us` microseconds over these layers; no more than usual where the layers together fit the L2."""
    return Sizes(layers, launches_of(us) if layers * shape.layer_bytes >= COLD_BYTES else LAUNCHES)


def percentile(sorted_values, share: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, max(0, math.ceil(share * len(sorted_values)) - 1))]


def summary(times_us):
    """p10, median and p90."""
    values = sorted(times_us)
    return {"p10_us": percentile(values, 0.1), "median_us": percentile(values, 0.5), "p90_us": percentile(values, 0.9)}
