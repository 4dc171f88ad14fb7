"""A plain read of global memory, for the measured bandwidth."""
import triton
import triton.language as tl


@triton.jit
def read(source, sink, block: tl.constexpr, blocks: tl.constexpr):
    """Program i sums source[i * block * blocks ...] and stores one number, so that nothing can be left out."""
    total = tl.zeros((block,), dtype=tl.int32)
    first = tl.program_id(0).to(tl.int64) * block * blocks
    for i in range(blocks):
        total += tl.load(source + first + i * block + tl.arange(0, block))
    tl.store(sink + tl.program_id(0), tl.sum(total))
