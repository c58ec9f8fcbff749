/* One pass of a model. */
#ifndef ELUTQ_FORWARD_H
#define ELUTQ_FORWARD_H

#include "engine.h"

/* Layers first .. end - 1 of a model. */
struct elutq_layers {
    uint32_t first, end;
};

/*
 * Runs engine->pieces[n_pieces], each of another sequence and max_rows tokens together at most, through these layers and writes
 * the logits that they want. ELUTQ_ERROR_CANCELLED or ELUTQ_ERROR_FORKED when there are none. Moves no position.
 */
int elutq_forward(struct elutq_engine *engine, uint32_t n_pieces, struct elutq_layers layers);

#endif
