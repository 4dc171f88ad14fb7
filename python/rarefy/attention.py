"""Decode attention over a paged KV cache, and merging of partial results: the plans of rarefy.h.

Arguments have the names and shapes of rarefy.h, which says what they mean. Wherever memory is expected, pass a torch tensor (or
anything with data_ptr() or __dlpack__), a writable buffer of this process, or an address.
"""
import ctypes
from typing import Optional

from . import _abi
from ._memory import address_of, dimension, memory_of, stream_of


def _code(table, name: str, value) -> int:
    if isinstance(value, str) and value in table:
        return table[value]
    raise ValueError(f"{name}: expected one of {', '.join(table)}, got {value!r}")


def _dtype(name: str, value, default: str) -> str:
    """"bf16", or anything whose text names it: torch.bfloat16."""
    if value is None:
        return default
    text = str(value).rpartition(".")[2]
    return {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "f8_e4m3"}.get(text, text)


def _device(device):
    """("cuda", 1) of "cuda:1" or torch.device("cuda", 1)."""
    kind, _, index = str(device).partition(":")
    return kind, int(index or 0)


class PagedKv:
    """One layer of a paged KV cache. `keys` and `values` are [num_pages, page_size, num_kv_heads, head_dim], or with layout="HND"
    [num_pages, num_kv_heads, page_size, head_dim]; tensors bring their strides along, other memory is contiguous or says
    `strides` = (page, token, head) in elements, and `num_pages`. `page_table` [batch, max_pages_per_sequence] i32, `kv_lens`
    [batch] i32, scales [num_kv_heads] f32."""

    def __init__(self, keys, values, page_table, kv_lens, *, layout: str = "NHD", strides=None, num_pages: Optional[int] = None,
                 max_pages_per_sequence: Optional[int] = None, key_scales=None, value_scales=None):
        if layout not in ("NHD", "HND"):
            raise ValueError(f"layout: expected NHD or HND, got {layout!r}")
        self.keys, self.values, self.page_table, self.kv_lens = keys, values, page_table, kv_lens
        self.key_scales, self.value_scales = key_scales, value_scales
        memory = memory_of(keys)
        if memory.strides is not None:
            if strides is not None:
                raise ValueError("strides: a tensor brings its own")
            other = memory_of(values)
            if len(memory.strides) != 4 or other.strides != memory.strides or memory.strides[3] != 1:
                raise ValueError("keys and values: expected four dimensions, contiguous rows and equal strides, got "
                                 f"{memory.strides} and {other.strides}")
            page, token, head, _ = memory.strides
            strides = (page, token, head) if layout == "NHD" else (page, head, token)
        elif strides is None and layout == "HND":
            raise ValueError("strides: expected (page, token, head) for layout HND and memory without strides of its own")
        self.strides, self.num_pages = strides or (0, 0, 0), dimension(keys, 0, 4, num_pages, "num_pages")
        self.max_pages_per_sequence = dimension(page_table, 1, 2, max_pages_per_sequence, "max_pages_per_sequence")

    def _struct(self, dtype: str, device: str):
        def i32(name):
            return address_of(getattr(self, name), name, "i32", device)
        page, token, head = self.strides
        return _abi.PagedKvStruct(
            keys=address_of(self.keys, "keys", dtype, device, contiguous=False),
            values=address_of(self.values, "values", dtype, device, contiguous=False), page_stride=page, token_stride=token,
            head_stride=head, num_pages=self.num_pages, max_pages_per_sequence=self.max_pages_per_sequence,
            page_table=i32("page_table"), kv_lens=i32("kv_lens"),
            key_scales=address_of(self.key_scales, "key_scales", "f32", device),
            value_scales=address_of(self.value_scales, "value_scales", "f32", device))


class IndexSet:
    """The tokens to attend to. `token_ids` and `log_weight` are [batch, num_lists, max_selected] i32 and f32, `counts`
    [batch, num_lists] i32 (-1: all tokens); ids ascend in each list."""

    def __init__(self, token_ids, counts, log_weight=None, *, max_selected: Optional[int] = None):
        self.token_ids, self.counts, self.log_weight = token_ids, counts, log_weight
        self.max_selected = dimension(token_ids, 2, 3, max_selected, "max_selected")

    def _struct(self, device: str):
        return _abi.IndexSetStruct(max_selected=self.max_selected, token_ids=address_of(self.token_ids, "token_ids", "i32", device),
                                   counts=address_of(self.counts, "counts", "i32", device),
                                   log_weight=address_of(self.log_weight, "log_weight", "f32", device))


class _Plan:
    """Owner of a handle."""

    _free = None

    def __init__(self, handle, free):
        self._handle, self._free = handle, free

    def __del__(self):
        if self._free is not None:
            self._free(self._handle)


class DecodePlan(_Plan):
    """`op` is "dense" or "sparse". Immutable; may be used from several threads."""

    def __init__(self, op: str, *, num_q_heads: int, num_kv_heads: int, head_dim: int, q_dtype=None, kv_dtype=None, out_dtype=None,
                 page_size: int = 16, num_queries: int = 1, scope: str = "kv_head", logit_soft_cap: float = 0.0,
                 sink_logit: bool = False, max_batch: int = 1, max_selected: int = 0, max_kv_len: int = 0, device="cpu"):
        library = _abi.library()
        self.op = op
        self.device, self.device_index = _device(device)
        self.q_dtype, self.kv_dtype = _dtype("q_dtype", q_dtype, "f32"), _dtype("kv_dtype", kv_dtype, "bf16")
        self.out_dtype = _dtype("out_dtype", out_dtype, "f32")
        problem = _abi.DecodeProblemStruct(
            op=_code(_abi.OPS, "op", op), device_kind=_code(_abi.DEVICES, "device", self.device), device_index=self.device_index,
            num_q_heads=num_q_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
            q_dtype=_code(_abi.DTYPES, "q_dtype", self.q_dtype), kv_dtype=_code(_abi.DTYPES, "kv_dtype", self.kv_dtype),
            out_dtype=_code(_abi.DTYPES, "out_dtype", self.out_dtype), page_size=page_size, num_queries=num_queries,
            scope=_code(_abi.SCOPES, "scope", scope), logit_soft_cap=logit_soft_cap, sink_logit=int(sink_logit),
            max_batch=max_batch, max_selected=max_selected,
            max_kv_len=max_kv_len)
        handle = ctypes.c_void_p()
        library.decode_plan_create(ctypes.byref(problem), ctypes.byref(handle))
        super().__init__(handle, library.decode_plan_free)
        self.implementation = library.decode_plan_implementation(handle).decode()
        size = ctypes.c_size_t()
        library.decode_plan_workspace_bytes(handle, ctypes.byref(size))
        self.workspace_bytes = size.value

    def prepare_workspace(self, workspace, stream=None):
        """Once for a workspace [workspace_bytes] bytes of the plan's device, 64-byte aligned, before its first run."""
        _abi.library().decode_plan_prepare_workspace(self._handle, address_of(workspace, "workspace", None, self.device),
                                                     self.workspace_bytes, self._stream(stream))

    def run(self, q, kv: PagedKv, out, *, index: Optional[IndexSet] = None, batch: Optional[int] = None,
            scale: Optional[float] = None, sink_logits=None, lse=None, rel_std=None, out_rel_std=None, workspace=None, stream=None):
        """`q` and `out` are [batch, num_queries, num_q_heads, head_dim]; lse and the errors [batch, num_queries, num_q_heads] f32.
        `batch` is needed where `q` does not say it; `scale` is 1 / sqrt(head_dim) by default."""
        batch = dimension(q, 0, 4, batch, "batch")

        def f32(owner, name):
            return address_of(owner, name, "f32", self.device)
        cache = kv._struct(self.kv_dtype, self.device)
        lists = index._struct(self.device) if index is not None else None
        args = _abi.DecodeArgsStruct(
            batch=batch, scale=scale or 0.0, q=address_of(q, "q", self.q_dtype, self.device), kv=ctypes.pointer(cache),
            index=ctypes.pointer(lists) if lists is not None else None, sink_logits=f32(sink_logits, "sink_logits"),
            out=address_of(out, "out", self.out_dtype, self.device), lse=f32(lse, "lse"), rel_std=f32(rel_std, "rel_std"),
            out_rel_std=f32(out_rel_std, "out_rel_std"), workspace=address_of(workspace, "workspace", None, self.device),
            workspace_bytes=self.workspace_bytes if workspace is not None else 0)
        _abi.library().decode_plan_run(self._handle, ctypes.byref(args), self._stream(stream))

    def check(self, workspace=None, stream=None):
        """Waits for the stream; raises for the first bad count or token id that runs met on a device since the last check."""
        _abi.library().decode_plan_check(self._handle, address_of(workspace, "workspace", None, self.device), self._stream(stream))

    def _stream(self, stream):
        return stream_of(stream, self.device, self.device_index)


class MergePlan(_Plan):
    """Merges (out, lse) pairs of disjoint sets of tokens. Immutable; may be used from several threads."""

    def __init__(self, *, head_dim: int, device="cpu"):
        library = _abi.library()
        self.device, self.device_index = _device(device)
        problem = _abi.MergeProblemStruct(device_kind=_code(_abi.DEVICES, "device", self.device), device_index=self.device_index,
                                          head_dim=head_dim)
        handle = ctypes.c_void_p()
        library.merge_plan_create(ctypes.byref(problem), ctypes.byref(handle))
        super().__init__(handle, library.merge_plan_free)
        self.implementation = library.merge_plan_implementation(handle).decode()

    def run(self, part_out, part_lse, out, *, lse=None, num_parts: Optional[int] = None, num_rows: Optional[int] = None, stream=None):
        """`part_out` [num_parts, num_rows, head_dim], `part_lse` [num_parts, num_rows], `out` [num_rows, head_dim], `lse`
        [num_rows], all f32; the two numbers are needed where `part_lse` does not say them."""
        def f32(owner, name):
            return address_of(owner, name, "f32", self.device)
        args = _abi.MergeArgsStruct(
            num_parts=dimension(part_lse, 0, 2, num_parts, "num_parts"), num_rows=dimension(part_lse, 1, 2, num_rows, "num_rows"),
            part_out=f32(part_out, "part_out"), part_lse=f32(part_lse, "part_lse"), out=f32(out, "out"), lse=f32(lse, "lse"))
        _abi.library().merge_plan_run(self._handle, ctypes.byref(args), stream_of(stream, self.device, self.device_index))
