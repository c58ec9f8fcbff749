"""The container's writer and reader against each other and against gguf-py's."""

import numpy as np
import pytest
from gguf import GGUFReader as PeerReader
from gguf import GGUFWriter as PeerWriter
from gguf import Keys

from elutq_formats.errors import ElutqError, FormatError
from elutq_formats.gguf import ValueType
from elutq_formats.gguf_reader import GGUFReader
from elutq_formats.gguf_writer import GGUFWriter

METADATA = [
    ("a.u8", 255, ValueType.UINT8),
    ("a.i8", -128, ValueType.INT8),
    ("a.u16", 65535, ValueType.UINT16),
    ("a.i16", -32768, ValueType.INT16),
    ("a.u32", 2**32 - 1, ValueType.UINT32),
    ("a.i32", -(2**31), ValueType.INT32),
    ("a.f32", 0.5, ValueType.FLOAT32),
    ("a.yes", True, ValueType.BOOL),
    ("a.text", "naïve 你好\n", ValueType.STRING),
    ("a.empty", "", ValueType.STRING),
    ("a.u64", 2**64 - 1, ValueType.UINT64),
    ("a.i64", -(2**63), ValueType.INT64),
    ("a.f64", 0.1, ValueType.FLOAT64),
    ("a.texts", ["x", "", "zz"], ValueType.STRING),
    ("a.numbers", [1, 2, 3], ValueType.UINT32),
    ("a.flags", [True, False], ValueType.BOOL),
    ("a.nothing", [], ValueType.FLOAT32),
]
TENSORS = {
    "vector": np.arange(5, dtype=np.float32),
    "matrix": np.arange(12, dtype=np.float16).reshape(3, 4),
    "bytes": np.arange(64, dtype=np.uint8).reshape(1, 64),
}
GGML_TYPES = {"vector": 0, "matrix": 1, "bytes": 24}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "written.gguf"
    with GGUFWriter(path) as writer:
        for entry in METADATA:
            writer.add_metadata(*entry)
        for name, values in TENSORS.items():
            writer.add_tensor(name, values.shape[::-1], GGML_TYPES[name])
        writer.write_header()
        for name, values in TENSORS.items():
            writer.write_tensor(name, values)
    return path


def test_everything_comes_back(written):
    reader = GGUFReader(written)
    assert reader.metadata == {"general.alignment": 64} | {key: value for key, value, _ in METADATA}
    assert reader.size_bytes == written.stat().st_size
    assert list(reader.tensors) == list(TENSORS)
    for name, values in TENSORS.items():
        info = reader.tensors[name]
        assert (info.dims, info.ggml_type, info.n_bytes) == (values.shape[::-1], GGML_TYPES[name], values.nbytes)
        assert reader.data(name).tobytes() == values.tobytes()


def test_data_are_mapped_in_place_read_only_and_aligned(written):
    data = GGUFReader(written).data("matrix")
    assert not data.flags.writeable
    assert not data.flags.owndata
    assert data.ctypes.data % 64 == 0


def test_gguf_py_reads_our_file(written):
    reader = PeerReader(written)
    assert {key: reader.get_field(key).contents() for key, _, _ in METADATA} == {
        key: value for key, value, _ in METADATA
    }
    assert {tensor.name: tensor.data.tobytes() for tensor in reader.tensors} == {
        name: values.tobytes() for name, values in TENSORS.items()
    }


def test_we_read_a_file_of_gguf_py(tmp_path):
    path = tmp_path / "peer.gguf"
    writer = PeerWriter(path, "llama")
    writer.add_uint32("a.number", 7)
    writer.add_float64("a.float", 0.25)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "héllo")
    writer.add_array("a.texts", ["p", "q"])
    writer.add_array("a.numbers", [1, 2])
    for name, values in TENSORS.items():
        writer.add_tensor(name, values.view(np.int8) if name == "bytes" else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = GGUFReader(path)
    assert reader.alignment == 32
    assert reader.metadata[Keys.General.ARCHITECTURE] == "llama"
    assert [reader.metadata[f"a.{key}"] for key in ("number", "float", "flag", "text")] == [7, 0.25, True, "héllo"]
    assert [reader.metadata[f"a.{key}"] for key in ("texts", "numbers")] == [["p", "q"], [1, 2]]
    for name, values in TENSORS.items():
        assert reader.tensors[name].dims == values.shape[::-1]
        assert reader.data(name).tobytes() == values.tobytes()


def test_a_file_without_tensors_is_sound(tmp_path):
    path = tmp_path / "empty.gguf"
    with GGUFWriter(path) as writer:
        writer.write_header()
    assert GGUFReader(path).tensors == {}


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(FormatError, match=r"cannot read .*: No such file"):
        GGUFReader(tmp_path / "absent.gguf")
    with pytest.raises(FormatError, match="cannot read"):
        GGUFReader(tmp_path)


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ElutqError, match=r"cannot write .*: No such file"):
        GGUFWriter(tmp_path / "absent" / "model.gguf")


class TestWriterOrder:
    @pytest.fixture
    def writer(self, tmp_path):
        writer = GGUFWriter(tmp_path / "model.gguf")
        writer.add_tensor("a", (2,), 0)
        writer.add_tensor("b", (2,), 0)
        return writer

    def test_names_are_unique(self, writer):
        with pytest.raises(ValueError, match="tensor a added twice"):
            writer.add_tensor("a", (2,), 0)
        with pytest.raises(ValueError, match=r"general\.alignment added twice"):
            writer.add_metadata("general.alignment", 32, ValueType.UINT32)

    def test_the_header_comes_before_the_data(self, writer):
        with pytest.raises(ValueError, match="DECLARING, not WRITING"):
            writer.write_tensor("a", np.zeros(2, np.float32))

    def test_nothing_is_declared_after_the_header(self, writer):
        writer.write_header()
        for call in (lambda: writer.add_tensor("c", (2,), 0), lambda: writer.add_metadata("k", 1, ValueType.INT8)):
            with pytest.raises(ValueError, match="WRITING, not DECLARING"):
                call()

    def test_tensors_come_in_the_declared_order_and_size(self, writer):
        writer.write_header()
        with pytest.raises(ValueError, match="tensor b written where a was declared"):
            writer.write_tensor("b", np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="declared with 8 bytes, not 12"):
            writer.write_tensor("a", np.zeros(3, np.float32))

    def test_every_tensor_is_written_once(self, writer):
        writer.write_header()
        writer.write_tensor("a", np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="1 declared tensors were not written"):
            writer.close()
        writer.write_tensor("b", np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="written where nothing was declared"):
            writer.write_tensor("b", np.zeros(2, np.float32))
        writer.close()
        with pytest.raises(ValueError, match="CLOSED"):
            writer.close()

    def test_strided_arrays_are_written_in_c_order(self, writer, tmp_path):
        writer.write_header()
        writer.write_tensor("a", np.arange(4, dtype=np.float32)[::2])
        writer.write_tensor("b", np.ones((1, 2), np.float32).T)
        writer.close()
        assert GGUFReader(tmp_path / "model.gguf").data("a").view("<f4").tolist() == [0, 2]
