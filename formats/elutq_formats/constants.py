"""On-disk constants, name for name those of ``native/include/elutq_format.h`` without the ``ELUTQ_`` prefix.

The C header is the definition; a test compares every name with this module.
"""

GGUF_MAGIC = 0x46554747
GGUF_VERSION = 3
GGUF_ALIGNMENT = 64
GGML_TYPE_F32 = 0
GGML_TYPE_F16 = 1
GGML_TYPE_I8 = 24

HLQ_VERSION = 1
HLQ_MIN_BITS = 1
HLQ_MAX_BITS = 4
TILE_ROWS = 32
SUPERBLOCK_TILES = 8
CELL_COLUMNS = 4
CELL_BYTES = 16

MAX_METADATA_ENTRIES = 65536
MAX_TENSORS = 65536
MAX_DIMENSIONS = 4
MAX_STRING_BYTES = 268435456
MAX_ARRAY_LENGTH = 16777216
MAX_NAME_BYTES = 256
