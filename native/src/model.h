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
    uint32_t sliding_window; /* tokens a position attends to, itself included, in layers that slide; 0: all in all */
    uint32_t rope_dim;       /* features of a head that turn, the first ones; even, at most head_dim */
    uint32_t rope_context;   /* tokens of a sequence from which rope_long_divisors hold */
    float rms_norm_eps;
    float rope_theta;
    float local_rope_theta; /* of layers that slide; 0: the same */
    float rope_factor;      /* of cosines and sines, not of local ones */
    float attention_softcap; /* of scores; 0: none */
    float logit_softcap;     /* the same of logits */
    bool gelu;              /* the MLP's gate is a GELU, not a SiLU */
    bool norm_spans_heads;  /* queries and keys are normed whole, not each head by itself */
};

/* How the heads of a layer turn. */
enum elutq_rope { ELUTQ_ROPE, ELUTQ_LOCAL_ROPE, ELUTQ_N_ROPES, ELUTQ_NO_ROPE = ELUTQ_N_ROPES };

/* A linear layer y = weight x + bias. */
struct elutq_linear {
    struct elutq_matrix weight;
    const float *bias; /* [n_rows], NULL when there is none */
};

struct elutq_layer {
    const float *attn_norm, *ffn_norm;           /* [hidden_size] of what a branch reads; NULL: it reads the stream itself */
    const float *attn_post_norm, *ffn_post_norm; /* [hidden_size] of what it adds to the stream; NULL: added as it is */
    const float *q_norm, *k_norm; /* [head_dim], or of all heads' rows where norm_spans_heads; NULL: not normed */
    uint32_t window;              /* tokens a position attends to, itself included; 0: all */
    enum elutq_rope rope;
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
    const float *rope_divisors;      /* [rope_dim / 2] divide the frequencies; NULL when unscaled */
    const float *rope_long_divisors; /* the same in sequences beyond rope_context; NULL: in these too */
    struct elutq_layer *layers;     /* [n_layers], owned */
};

#endif
