/*
 * On-disk constants of an elutq model file (formats/SPEC.md is the authority).
 *
 * A model file is a GGUF v3 container, little-endian. An HLQ matrix is one tensor of type I8 whose bytes are fixed-size
 * blocks; a block holds one tile of ELUTQ_TILE_ROWS rows by one group of columns:
 *
 *     half_scales[bits][32] fp16    h_k >= 0
 *     centers[32]           fp16    c
 *     planes[bits][group/4][16]     cell (16 bytes): 32 rows x 4 columns of one bit-plane
 *
 * so that weight = c + sum_k h_k * (2 * bit_k - 1). Byte j of a cell holds row (j >> 1) + 8 * (j & 1) in its low nibble and
 * that row + 16 in its high nibble; bit i of a nibble is column i. Blocks are ordered
 * [superblock of 8 tiles][group][tile]; a matrix's last superblock holds only the tiles that exist, rows past the last
 * one of the matrix are zero.
 *
 * That is the kind free16; in blocks of another kind half scales and centers are fewer or smaller.
 */
#ifndef ELUTQ_FORMAT_H
#define ELUTQ_FORMAT_H

#define ELUTQ_GGUF_MAGIC 0x46554747u
#define ELUTQ_GGUF_VERSION 3
#define ELUTQ_GGUF_ALIGNMENT 64
#define ELUTQ_GGML_TYPE_F32 0
#define ELUTQ_GGML_TYPE_F16 1
#define ELUTQ_GGML_TYPE_I8 24

/* The newest version; a file has 1 where every matrix is of kind 0 in groups of at most 128. */
#define ELUTQ_HLQ_VERSION 2
#define ELUTQ_HLQ_MIN_BITS 1
#define ELUTQ_HLQ_MAX_BITS 4
#define ELUTQ_HLQ_MAX_GROUP_SIZE 256
#define ELUTQ_TILE_ROWS 32
#define ELUTQ_SUPERBLOCK_TILES 8
#define ELUTQ_CELL_COLUMNS 4
#define ELUTQ_CELL_BYTES 16

/*
 * The kind of a matrix's blocks: the sum of these, CENTERS only with EVEN, so that there are six.
 *
 *     BYTES    half scales, and centers of kinds that are not EVEN, are bytes times a power of two of the matrix
 *     EVEN     one half scale h_1, and h_k = 2^(k-1) h_1: levels are evenly spaced. All centers are the matrix's times h_1
 *     CENTERS  but each group and row has its own, a signed byte times h_1 / 4
 */
#define ELUTQ_KIND_BYTES 1
#define ELUTQ_KIND_EVEN 2
#define ELUTQ_KIND_CENTERS 4

/*
 * A half scale's byte, three bits of exponent and five of mantissa, shifted left by this many bits is an fp16 number below
 * 2^-7; so is a center's, its sign taken out, four bits of mantissa. 2^ELUTQ_MAX_EXPONENT times those are still fp16 numbers.
 */
#define ELUTQ_HALF_SCALE_SHIFT 5
#define ELUTQ_CENTER_SHIFT 6
#define ELUTQ_MAX_EXPONENT 23

/* Limits a reader enforces before it trusts a file. */
#define ELUTQ_MAX_METADATA_ENTRIES 65536
#define ELUTQ_MAX_TENSORS 65536
#define ELUTQ_MAX_DIMENSIONS 4
#define ELUTQ_MAX_STRING_BYTES 268435456
#define ELUTQ_MAX_ARRAY_LENGTH 16777216
#define ELUTQ_MAX_NAME_BYTES 256

/* Sizes no model of these families comes near; with them no product in the runtime overflows 64 bits. */
#define ELUTQ_MAX_WIDTH 4194304
#define ELUTQ_MAX_LAYERS 1024
#define ELUTQ_MAX_HEADS 4096
#define ELUTQ_MAX_HEAD_DIM 1024
#define ELUTQ_MAX_EXPERTS 1024
#define ELUTQ_MAX_VOCABULARY 16777216
#define ELUTQ_MAX_CONTEXT 67108864

_Static_assert(ELUTQ_TILE_ROWS * ELUTQ_CELL_COLUMNS == 8 * ELUTQ_CELL_BYTES, "a cell holds one bit per weight");

#endif
