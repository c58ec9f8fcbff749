/* Which tensor of a model holds numbers that no model has. Reads the whole file: for when something has gone wrong. */
#ifndef ELUTQ_DAMAGE_H
#define ELUTQ_DAMAGE_H

#include "model.h"

/* The first tensor with a half scale below zero, or a scale, center or weight that is not finite; NULL when there is none. */
const struct elutq_tensor *elutq_find_damage(const struct elutq_model *model);

#endif
