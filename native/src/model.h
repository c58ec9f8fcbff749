/* A model: configuration and pointers into the mapped file. What passes read never changes, so it is shared freely. */
#ifndef ELUTQ_MODEL_H
#define ELUTQ_MODEL_H

#include <stdatomic.h>

#include "elutq_kernels.h"
#include "gguf.h"

struct elutq_config {
    uint32_t hidden_size;
    uint32_t intermediate_size;
    uint32_t n_layers;
    uint32_t n_heads;
    uint32_t n_kv_heads; /* divides n_heads */
    uint32_t head_dim;   /* even */
    uint32_t vocab_size;
    uint32_t context_length;
    uint32_t sliding_window; /* tokens a position attends to, itself included; 0: all */
    float rms_norm_eps;
    float rope_theta;
};

/* A linear layer y = weight x + bias. */
struct elutq_linear {
    struct elutq_matrix weight;
    const float *bias; /* [n_rows], NULL when there is none */
};

struct elutq_layer {
    const float *attn_norm, *ffn_norm; /* [hidden_size] */
    const float *q_norm, *k_norm;      /* [head_dim], NULL unless the family normalises queries and keys (Qwen3) */
    struct elutq_linear q, k, v, o, gate, up, down;
};

struct elutq_model {
    atomic_uint n_owners; /* who opened it, its engines and its sequences */
    struct elutq_gguf gguf;
    const struct elutq_kernels *kernels;
    struct elutq_config config;
    struct elutq_matrix embedding;  /* [vocab_size][hidden_size] */
    struct elutq_linear head;       /* the embedding when the head is tied */
    const float *output_norm;       /* [hidden_size] */
    const float *rope_divisors;     /* [head_dim / 2] divide the frequencies; NULL when unscaled */
    struct elutq_layer *layers;     /* [n_layers], owned */
};

#endif
