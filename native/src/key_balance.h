/*
 * What keys are divided by, and queries multiplied by, before keys are rounded to int8.
 *
 * Where a key projection has a bias, as in Qwen2, a few channels hold values a hundred times the others', at every position.
 * A row's one scale then leaves the others no precision. The file says which channels these are: by the bias, by the scales of
 * the rows that make them, and, where keys are normed as in Qwen3, by the norm's weight. Both members of a pair that RoPE turns
 * get the same divisor, so that it does not matter where they stand, and scores stay what they were.
 */
#ifndef ELUTQ_KEY_BALANCE_H
#define ELUTQ_KEY_BALANCE_H

#include "model.h"

/* Fills factors[n_layers][n_kv_heads][for queries, for keys][head_dim]. */
void elutq_key_balance(const struct elutq_model *model, float *factors);

#endif
