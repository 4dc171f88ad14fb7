"""Where the caller's memory lies: torch tensors and the like (data_ptr()), DLPack, buffers of this process, or a plain address.

Nothing is copied or kept: the caller keeps what it passes alive until the work on the stream is done.
"""
import ctypes
import sys
from typing import NamedTuple, Optional

# By name (torch, numpy), by buffer format, by DLPack (type code, bits).
_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int32": "i32", "float8_e4m3fn": "f8_e4m3"}
_FORMATS = {"f": "f32", "e": "f16", "i": "i32"}
_DLPACK = {(2, 32): "f32", (2, 16): "f16", (4, 16): "bf16", (0, 32): "i32", (10, 8): "f8_e4m3"}
# Integers that carry the bits of a type that their owner does not know.
_CONTAINERS = {"uint8": 8, "int8": 8, "uint16": 16, "int16": 16}
_BITS = {"f8_e4m3": 8, "f16": 16, "bf16": 16}


class Memory(NamedTuple):
    address: int
    dtype: Optional[str] = None       # None: not known
    shape: Optional[tuple] = None     # None: not known
    strides: Optional[tuple] = None   # in elements; None: not known, or contiguous
    device: Optional[str] = None      # "cpu", "cuda"; None: not known


class _DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
                ("byte_offset", ctypes.c_uint64)]


def _of_tensor(tensor) -> Memory:
    name = str(tensor.dtype).rpartition(".")[2]
    device = getattr(getattr(tensor, "device", None), "type", None)
    return Memory(tensor.data_ptr(), _NAMES.get(name, name), tuple(tensor.shape), tuple(tensor.stride()), device)


def _of_dlpack(owner) -> Memory:
    capsule = owner.__dlpack__()
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _DLTensor.from_address(get(capsule, b"dltensor"))
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _contiguous_strides(shape)
    dtype = _DLPACK.get((tensor.code, tensor.bits), f"DLPack type {tensor.code} of {tensor.bits} bits")
    device = {1: "cpu", 2: "cuda"}.get(tensor.device_type, f"DLPack device {tensor.device_type}")
    return Memory((tensor.data or 0) + tensor.byte_offset, dtype, shape, strides, device)


def _of_buffer(owner) -> Memory:
    view = memoryview(owner)
    if view.readonly:
        raise TypeError("expected writable memory, got a read-only buffer")
    if not view.contiguous:
        raise TypeError("expected contiguous memory, got a strided buffer")
    address = ctypes.addressof(ctypes.c_char.from_buffer(view)) if view.nbytes else 0
    # Bytes may hold anything, and one dimension says nothing about the shape.
    dtype = None if view.itemsize == 1 else _FORMATS.get(view.format.lstrip("@=<"), view.format)
    shape = tuple(view.shape) if view.ndim > 1 else None
    return Memory(address, dtype, shape, _contiguous_strides(shape) if shape else None, "cpu")


def memory_of(owner) -> Memory:
    if owner is None:
        return Memory(0)
    if isinstance(owner, int):
        return Memory(owner)
    if hasattr(owner, "data_ptr"):
        return _of_tensor(owner)
    try:
        return _of_buffer(owner)
    except TypeError as error:
        if not hasattr(owner, "__dlpack__"):
            raise TypeError(f"expected a tensor, a writable buffer or an address, got {type(owner).__name__}: {error}") from None
    return _of_dlpack(owner)


def address_of(owner, name: str, dtype: Optional[str], device: str, contiguous: bool = True) -> Optional[int]:
    """Address of `owner` after what is known about it was compared with what the library will read there; None for None."""
    if owner is None:
        return None
    try:
        memory = memory_of(owner)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    container = _CONTAINERS.get(memory.dtype)
    known = memory.dtype is not None and (container is None or container != _BITS.get(dtype))
    if dtype is not None and known and memory.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {memory.dtype}")
    if memory.device is not None and memory.device != device:
        raise ValueError(f"{name}: expected memory of the plan's device ({device}), got {memory.device}")
    if contiguous and memory.strides is not None and not is_contiguous(memory.shape, memory.strides):
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {memory.strides} for shape {memory.shape}")
    return memory.address


def _contiguous_strides(shape) -> tuple:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides)


def is_contiguous(shape, strides) -> bool:
    return all(size == 1 or stride == expected for size, stride, expected in zip(shape, strides, _contiguous_strides(shape)))


def dimension(owner, axis: int, rank: int, given: Optional[int], name: str) -> int:
    """`given`, or the size of an axis of memory that says its shape."""
    if given is not None:
        return given
    shape = memory_of(owner).shape
    if shape is None:
        raise ValueError(f"expected {name}, where the memory passed does not say it")
    if len(shape) != rank:
        raise ValueError(f"expected {rank} dimensions for {name}, got {shape}")
    return shape[axis]


def stream_of(stream, device: str, device_index: int) -> Optional[int]:
    """A cudaStream_t: of a torch stream, an address, or by default torch's current stream of the device."""
    if device != "cuda":
        return None
    if stream is None:
        torch = sys.modules.get("torch")
        return torch.cuda.current_stream(device_index).cuda_stream if torch is not None else None
    return getattr(stream, "cuda_stream", stream)
