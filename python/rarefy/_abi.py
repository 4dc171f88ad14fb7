"""The C interface as ctypes sees it: finds librarefy_c, mirrors the structs of rarefy.h, turns statuses into exceptions."""
import ctypes
import ctypes.util
import os
import pathlib

ABI_VERSION = (0, 1)  # major, minor of the rarefy.h that is mirrored here

DTYPES = {"default": 0, "f32": 1, "f16": 2, "bf16": 3, "f8_e4m3": 4}
DEVICES = {"cpu": 0, "cuda": 1}
OPS = {"dense": 0, "sparse": 1}
SCOPES = {"kv_head": 0, "query_head": 1}


class RarefyError(RuntimeError):
    """A call that the library refused; `status` is "invalid argument", "unsupported", ..."""

    def __init__(self, status: str, message: str):
        super().__init__(f"{status}: {message}")
        self.status = status


class Struct(ctypes.Structure):
    """Starts with struct_size, which is set here."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


def _struct(name, *fields):
    return type(name, (Struct,), {"_fields_": [("struct_size", ctypes.c_size_t), *fields]})


_i32, _i64, _f32, _ptr = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p

PagedKvStruct = _struct(
    "rarefy_paged_kv", ("keys", _ptr), ("values", _ptr), ("page_stride", _i64), ("token_stride", _i64), ("head_stride", _i64),
    ("num_pages", _i32), ("max_pages_per_sequence", _i32), ("page_table", _ptr), ("kv_lens", _ptr), ("key_scales", _ptr),
    ("value_scales", _ptr))
IndexSetStruct = _struct("rarefy_index_set", ("max_selected", _i32), ("token_ids", _ptr), ("counts", _ptr), ("log_weight", _ptr))
DecodeProblemStruct = _struct(
    "rarefy_decode_problem", ("op", _i32), ("device_kind", _i32), ("device_index", _i32), ("num_q_heads", _i32),
    ("num_kv_heads", _i32), ("head_dim", _i32), ("q_dtype", _i32), ("kv_dtype", _i32), ("out_dtype", _i32), ("page_size", _i32),
    ("num_queries", _i32), ("scope", _i32), ("logit_soft_cap", _f32), ("sink_logit", _i32), ("max_batch", _i32),
    ("max_selected", _i32), ("max_kv_len", _i32))
DecodeArgsStruct = _struct(
    "rarefy_decode_args", ("batch", _i32), ("scale", _f32), ("q", _ptr), ("kv", ctypes.POINTER(PagedKvStruct)),
    ("index", ctypes.POINTER(IndexSetStruct)), ("sink_logits", _ptr), ("out", _ptr), ("lse", _ptr), ("rel_std", _ptr),
    ("out_rel_std", _ptr), ("workspace", _ptr), ("workspace_bytes", ctypes.c_size_t))
MergeProblemStruct = _struct("rarefy_merge_problem", ("device_kind", _i32), ("device_index", _i32), ("head_dim", _i32))
MergeArgsStruct = _struct("rarefy_merge_args", ("num_parts", _i32), ("num_rows", _i64), ("part_out", _ptr), ("part_lse", _ptr),
                          ("out", _ptr), ("lse", _ptr))

STRUCTS = (PagedKvStruct, IndexSetStruct, DecodeProblemStruct, DecodeArgsStruct, MergeProblemStruct, MergeArgsStruct)

# name -> (result, arguments); a result of None is a rarefy_status.
_FUNCTIONS = {
    "rarefy_version": (_i32, []),
    "rarefy_version_string": (ctypes.c_char_p, []),
    "rarefy_status_name": (ctypes.c_char_p, [ctypes.c_int]),
    "rarefy_last_error": (ctypes.c_char_p, []),
    "rarefy_set_num_threads": (None, [_i32]),
    "rarefy_decode_plan_create": (None, [ctypes.POINTER(DecodeProblemStruct), ctypes.POINTER(_ptr)]),
    "rarefy_decode_plan_free": ("void", [_ptr]),
    "rarefy_decode_plan_implementation": (ctypes.c_char_p, [_ptr]),
    "rarefy_decode_plan_workspace_bytes": (None, [_ptr, ctypes.POINTER(ctypes.c_size_t)]),
    "rarefy_decode_plan_prepare_workspace": (None, [_ptr, _ptr, ctypes.c_size_t, _ptr]),
    "rarefy_decode_plan_run": (None, [_ptr, ctypes.POINTER(DecodeArgsStruct), _ptr]),
    "rarefy_decode_plan_check": (None, [_ptr, _ptr, _ptr]),
    "rarefy_merge_plan_create": (None, [ctypes.POINTER(MergeProblemStruct), ctypes.POINTER(_ptr)]),
    "rarefy_merge_plan_free": ("void", [_ptr]),
    "rarefy_merge_plan_implementation": (ctypes.c_char_p, [_ptr]),
    "rarefy_merge_plan_run": (None, [_ptr, ctypes.POINTER(MergeArgsStruct), _ptr]),
}


def _candidates():
    """(path, where it comes from), best first."""
    if os.environ.get("RAREFY_LIBRARY"):
        return [(os.environ["RAREFY_LIBRARY"], "RAREFY_LIBRARY")]
    found = [(str(path), "beside the package") for path in sorted(pathlib.Path(__file__).parent.glob("librarefy_c.so*"))]
    name = ctypes.util.find_library("rarefy_c")
    return found + ([(name, "the system's loader")] if name else []) + [
        ("librarefy_c.so.{}.{}".format(*ABI_VERSION), "the system's loader")]


def _open():
    tried = []
    for path, source in _candidates():
        try:
            return ctypes.CDLL(path)
        except OSError as error:
            tried.append(f"{path} ({source}): {error}")
    raise ImportError("rarefy: librarefy_c was not found; build it and set RAREFY_LIBRARY to the path of librarefy_c.so. Tried: "
                      + "; ".join(tried))


class _Library:
    """The functions of rarefy.h; those that return a status raise RarefyError."""

    def __init__(self):
        library = _open()
        for name, (result, arguments) in _FUNCTIONS.items():
            try:
                function = getattr(library, name)
            except AttributeError:
                raise ImportError(f"rarefy: {library._name} has no {name}; it is older than this package") from None
            function.argtypes = arguments
            function.restype = ctypes.c_int if result is None else None if result == "void" else result
            if result is None:
                function.errcheck = self._check
            setattr(self, name.removeprefix("rarefy_"), function)
        version = self.version()
        if (version // 10000, version // 100 % 100) != ABI_VERSION:
            raise ImportError("rarefy: expected librarefy_c {}.{}.x, got {} in {}".format(
                *ABI_VERSION, self.version_string().decode(), library._name))

    def _check(self, status, function, arguments):
        if status != 0:
            raise RarefyError(self.status_name(status).decode(), self.last_error().decode())
        return status


_library = None


def library() -> _Library:
    """Opened at the first use, so that importing the package needs no library."""
    global _library
    if _library is None:
        _library = _Library()
    return _library
