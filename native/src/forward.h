/* One pass of a model. */
#ifndef ELUTQ_FORWARD_H
#define ELUTQ_FORWARD_H

#include "engine.h"

/*
 * Runs engine->pieces[n_pieces], each of another sequence and max_rows tokens together at most, through the model and writes
 * the logits that they want. ELUTQ_ERROR_CANCELLED or ELUTQ_ERROR_FORKED when there are none. Moves no position.
 */
int elutq_forward(struct elutq_engine *engine, uint32_t n_pieces);

#endif
