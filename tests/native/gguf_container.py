"""A GGUF file taken apart and put together again, for tests that need one that no writer would make."""

import struct

SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


def text(value):
    return struct.pack("<Q", len(value)) + value


class Container:
    """A GGUF file taken apart, so that a test can change any field of it and put it together again."""

    def __init__(self, raw):
        self.raw, self.at = raw, 0
        self.take(8)
        n_tensors, n_entries = self.number("<Q"), self.number("<Q")
        self.counts = None
        self.entries = [[self.string(), *self.value()] for _ in range(n_entries)]
        self.tensors = []
        for _ in range(n_tensors):
            name = self.string()
            dims = [self.number("<Q") for _ in range(self.number("<I"))]
            self.tensors.append([name, dims, self.number("<I"), self.number("<Q")])
        self.data = raw[-(-self.at // 64) * 64 :]

    def take(self, n_bytes):
        self.at += n_bytes
        return self.raw[self.at - n_bytes : self.at]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self):
        return self.take(self.number("<Q"))

    def value(self):
        kind, start = self.number("<I"), self.at
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            element, n = self.number("<I"), self.number("<Q")
            for _ in range(n):
                self.string() if element == STRING else self.take(SCALAR_BYTES[element])
        else:
            self.take(SCALAR_BYTES[kind])
        return kind, self.raw[start : self.at]

    def entry(self, key):
        return next(entry for entry in self.entries if entry[0] == key.encode())

    def set(self, key, form, *values):
        self.entry(key)[2] = struct.pack(form, *values)

    def tensor(self, name):
        return next(tensor for tensor in self.tensors if tensor[0] == name.encode())

    def patch(self, name, at, new):
        start = self.tensor(name)[3] + at
        self.data = self.data[:start] + new + self.data[start + len(new) :]

    def bytes(self):
        n_tensors, n_entries = self.counts or (len(self.tensors), len(self.entries))
        header = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_entries)
        header += b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in self.entries)
        for name, dims, kind, offset in self.tensors:
            header += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        return header + bytes(-len(header) % 64) + self.data
