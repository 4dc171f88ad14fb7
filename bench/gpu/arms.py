"""The arms of the comparison. An arm is made for a set of launches and gives one callable per launch; `out` holds its results.

Whatever plans, allocates or compiles happens while an arm is made, outside the graph. Programmatic dependent launch is on where an
arm offers it.
"""
import torch

from caches import Caches, SlotLists

WORKSPACE_BYTES = 512 << 20


class Arm:
    """`name`, and after making: `launches`, a callable for each slot, and `out`, their outputs [batch, 1, num_q_heads, head_dim]."""

    def __init__(self, caches: Caches, slots):
        self.out = [torch.full_like(slot[2], float("nan")) for slot in slots]
        self.launches = []
        self.page_table = caches.page_table  # where this arm takes a sequence's tokens from


def aligned_bytes(num_bytes: int, device: str):
    """[num_bytes] u8 on a 64-byte boundary."""
    raw = torch.empty(num_bytes + 64, dtype=torch.uint8, device=device)
    return raw[-raw.data_ptr() % 64:][:num_bytes]


def _float_workspace():
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")


def _wrapper(workspace, indptr, indices, last, backend: str, tensor_cores: bool, graph_plan: bool):
    """A decode wrapper. With `graph_plan` its plan leaves room for other lengths of the same batch, as an engine needs it; without,
    it is made for exactly these, and may be captured as well while they last. Both are measured."""
    import flashinfer
    buffers = dict(paged_kv_indptr_buffer=indptr.cuda(), paged_kv_indices_buffer=indices.clone(),
                   paged_kv_last_page_len_buffer=last.cuda()) if graph_plan else {}
    return flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_cuda_graph=graph_plan, use_tensor_cores=tensor_cores,
                                                         backend=backend, **buffers)


class FlashInferDense(Arm):
    """BatchDecodeWithPagedKVCacheWrapper; one plan serves all layers, as their lengths and page tables are equal."""

    def __init__(self, caches, slots, backend: str, tensor_cores: bool, graph_plan: bool = True):
        super().__init__(caches, slots)
        shape = caches.shape
        indptr = torch.arange(shape.batch + 1, dtype=torch.int32) * caches.pages_per_sequence
        last = torch.full((shape.batch,), (shape.kv_len - 1) % shape.page_size + 1, dtype=torch.int32)
        self.wrapper = _wrapper(_float_workspace(), indptr, caches.page_table.flatten(), last, backend, tensor_cores, graph_plan)
        options = {"block_tables": caches.page_table} if backend in ("cudnn", "trtllm-gen", "cutile") else {}
        self.wrapper.plan(indptr, caches.page_table.flatten(), last, shape.num_q_heads, shape.num_kv_heads, shape.head_dim,
                          shape.page_size, q_data_type=caches.dtype, kv_data_type=caches.dtype, **options)
        pdl = {"enable_pdl": True} if backend in ("auto", "fa2") else {}  # "only for FA2 and CUDA core decode", says its documentation
        for (keys, values, q), out in zip(slots, self.out):
            self.launches.append(lambda k=keys, v=values, q=q[:, 0], o=out[:, 0]: self.wrapper.run(q, (k, v), out=o, **pdl))


class FlashInferXqa(Arm):
    def __init__(self, caches, slots, backend: str = "xqa"):
        import flashinfer.decode
        super().__init__(caches, slots)
        self.workspace = _float_workspace()
        lens = caches.kv_lens
        for (keys, values, q), out in zip(slots, self.out):
            self.launches.append(lambda k=keys, v=values, q=q[:, 0], o=out[:, 0]: flashinfer.decode.trtllm_batch_decode_with_kv_cache(
                q, (k, v), self.workspace, caches.page_table, lens, caches.shape.kv_len, bmm1_scale=caches.scale, bmm2_scale=1.0,
                out=o, kv_layout="NHD", backend=backend, enable_pdl=True))


class FlashAttention3(Arm):
    """A wheel without paged caches: each sequence's tokens in the order in which they lie, which is no disadvantage."""

    def __init__(self, caches, slots):
        import fa3_fwd_interface
        super().__init__(caches, slots)
        shape = caches.shape
        size = (shape.batch, caches.pages_per_sequence * shape.page_size, shape.num_kv_heads, shape.head_dim)
        self.page_table = torch.arange(caches.page_table.numel(), device=caches.device).view_as(caches.page_table)

        def run(keys, values, q, slot):
            self.out[slot] = fa3_fwd_interface.flash_attn_with_kvcache(
                q, keys.view(size), values.view(size), cache_seqlens=caches.kv_lens, softmax_scale=caches.scale, causal=False)
        for slot, (keys, values, q) in enumerate(slots):
            self.launches.append(lambda k=keys, v=values, q=q, s=slot: run(k, v, q, s))


class FlashInferGather(Arm):
    """Page size 1, one request per list, the listed rows as its page table; the tensor-core path of fa2."""

    def __init__(self, caches, slots, slot_lists: SlotLists, graph_plan: bool):
        super().__init__(caches, slots)
        shape, lists = caches.shape, slot_lists.lists
        heads = shape.group if lists.scope == "kv_head" else 1
        workspace = _float_workspace()
        for (keys, values, q), out, (ids, _, _, host_counts) in zip(slots, self.out, slot_lists.sets):
            counts = torch.tensor(host_counts, dtype=torch.int32).flatten()
            indptr = torch.cat([torch.zeros(1, dtype=torch.int32), counts.cumsum(0).int()])
            rows = caches.rows_of(ids, lists)
            indices = rows[rows >= 0].contiguous()  # in the order of the lists
            last = torch.ones(len(counts), dtype=torch.int32)
            wrapper = _wrapper(workspace, indptr, indices, last, "fa2", True, graph_plan)
            wrapper.plan(indptr, indices, last, heads, 1, shape.head_dim, 1, q_data_type=caches.dtype, kv_data_type=caches.dtype)
            view = (-1, 1, 1, shape.head_dim)
            flat = (len(counts), heads, shape.head_dim)
            self.launches.append(lambda w=wrapper, q=q.view(flat), k=keys.view(view), v=values.view(view), o=out.view(flat):
                                 w.run(q, (k, v), out=o, enable_pdl=True))


class Rarefy(Arm):
    """Dense, or sparse where lists are given. One workspace for all launches, as an engine has it."""

    def __init__(self, caches, slots, slot_lists: SlotLists = None):
        import rarefy
        super().__init__(caches, slots)
        shape, kv_dtype = caches.shape, caches.dtype
        options = dict(scope=slot_lists.lists.scope, max_selected=slot_lists.max_selected) if slot_lists else {}
        self.plan = rarefy.DecodePlan(
            "sparse" if slot_lists else "dense", num_q_heads=shape.num_q_heads, num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim, q_dtype=kv_dtype, kv_dtype=kv_dtype, out_dtype=kv_dtype, page_size=shape.page_size,
            max_batch=shape.batch, max_kv_len=shape.kv_len, device=caches.device, **options)
        self.implementation = self.plan.implementation
        self.workspace = aligned_bytes(self.plan.workspace_bytes, caches.device)
        self.plan.prepare_workspace(self.workspace)
        for i, ((keys, values, q), out) in enumerate(zip(slots, self.out)):
            kv = rarefy.PagedKv(keys, values, caches.page_table, caches.kv_lens)
            index = rarefy.IndexSet(*slot_lists.sets[i][:3]) if slot_lists else None
            self.launches.append(lambda q=q, kv=kv, out=out, index=index: self.plan.run(
                q, kv, out, index=index, scale=caches.scale, workspace=self.workspace))

    def check(self):
        """Raises for a bad count or id that the device met."""
        self.plan.check(self.workspace)


GATHER = {"graph_plan": True, "exact_plan": False}


def on_blackwell(make):
    """Its kernels are compute capability 10 only, and are fetched before it says so: a minute of retries without a network."""
    def made(caches, slots):
        capability = torch.cuda.get_device_capability()
        if capability[0] < 10:
            raise RuntimeError(f"needs compute capability 10, this GPU has {capability[0]}.{capability[1]}")
        return make(caches, slots)
    return made


# Every decode backend that FlashInfer names, and FlashAttention-3; what does not run here says why in the results.
DENSE = {
    "flashinfer_fa2_cuda_cores": lambda caches, slots: FlashInferDense(caches, slots, "fa2", False),
    "flashinfer_fa2_tensor_cores": lambda caches, slots: FlashInferDense(caches, slots, "fa2", True),
    "flashinfer_fa2_tensor_cores_exact_plan": lambda caches, slots: FlashInferDense(caches, slots, "fa2", True, False),
    "flashinfer_fa3": lambda caches, slots: FlashInferDense(caches, slots, "fa3", True),
    "flashinfer_xqa": lambda caches, slots: FlashInferXqa(caches, slots),
    "flashinfer_cudnn": lambda caches, slots: FlashInferDense(caches, slots, "cudnn", False),
    "flashinfer_trtllm_gen": on_blackwell(lambda caches, slots: FlashInferDense(caches, slots, "trtllm-gen", True)),
    "flashinfer_cute_dsl": lambda caches, slots: FlashInferDense(caches, slots, "cute-dsl", True),
    "flashinfer_cutile": lambda caches, slots: FlashInferDense(caches, slots, "cutile", False),
    "flash_attention_3": lambda caches, slots: FlashAttention3(caches, slots),
}
