"""Arrays that end where memory ends: the page after them cannot be read, nor the page before."""

import ctypes
import mmap

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_PROT_NONE = 0


class GuardedMemory:
    """Hands out arrays between guard pages; keeps them alive."""

    def __init__(self):
        self._maps = []

    def array(self, shape, dtype):
        """Returns a zeroed array whose last byte is followed by an unreadable page."""
        dtype = np.dtype(dtype)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        n_pages = -(-n_bytes // mmap.PAGESIZE)
        pages = mmap.mmap(-1, (n_pages + 2) * mmap.PAGESIZE)
        self._maps.append(pages)
        whole = np.frombuffer(pages, np.uint8)
        for guard in (whole.ctypes.data, whole.ctypes.data + (n_pages + 1) * mmap.PAGESIZE):
            if _libc.mprotect(guard, mmap.PAGESIZE, _PROT_NONE) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        end = (n_pages + 1) * mmap.PAGESIZE
        return whole[end - n_bytes : end].view(dtype).reshape(shape)

    def copy(self, values):
        """Returns a guarded copy of an array."""
        values = np.ascontiguousarray(values)
        guarded = self.array(values.shape, values.dtype)
        guarded[...] = values
        return guarded
