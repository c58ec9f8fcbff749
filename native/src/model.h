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
    uint32_t n_sliding_layers;
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
    uint32_t n_experts;      /* of a layer that has a router; 0: none has */
    uint32_t n_experts_used; /* by a token, 1 to n_experts */
    uint32_t expert_size;    /* width of an expert */
    uint32_t shared_expert_size; /* of the one that all tokens use; 0: there is none */
    bool normalize_expert_weights; /* those of the experts that a token uses add up to 1 */
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
    uint32_t n_sliding_before;    /* layers before this one that have a window */
    enum elutq_rope rope;
    struct elutq_linear q, k, v, o;
    struct elutq_linear gate, up, down; /* of the MLP, or of the shared expert; no weights where there is neither */
    const float *router;                /* [n_experts][hidden_size]; NULL: the layer has no experts, but an MLP */
    const float *shared_gate;           /* [hidden_size]; NULL: it has no shared expert */
    struct elutq_linear expert_gate, expert_up, expert_down; /* of the first expert: elutq_matrix_behind; no biases */
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

/* A matrix of a layer, or as many alike as there are experts, one behind the other. */
struct elutq_stored_matrix {
    const struct elutq_matrix *matrix; /* the first */
    bool of_experts;
    uint32_t n_stored, n_read; /* all, and those that a token uses */
};

#define ELUTQ_LAYER_MATRICES 10

/* The matrices that layer i has, in the order in which a pass reads them. Returns how many there are. */
unsigned elutq_layer_matrices(const struct elutq_model *model, uint32_t i,
                              struct elutq_stored_matrix stored[ELUTQ_LAYER_MATRICES]);

/* Bytes of layer i's router; 0 where it has none. */
uint64_t elutq_router_bytes(const struct elutq_model *model, uint32_t i);

#endif
