/* What loads a model file, in two files: its configuration (model_config.c) and its tensors (model.c). */
#ifndef ELUTQ_LOADER_H
#define ELUTQ_LOADER_H

#include "model.h"

#define ELUTQ_KEY_BYTES 128
#define ELUTQ_ARCHITECTURE_BYTES 32

struct elutq_loader {
    struct elutq_model *model;
    const struct elutq_error *error;
    char architecture[ELUTQ_ARCHITECTURE_BYTES];
    bool *used; /* [n_tensors] whether the model has that tensor */
    uint32_t version; /* hlq.version */
    int status; /* the first failure; later steps do nothing */
};

/* Notes the first failure, "NAME what"; false. */
bool elutq_load_fail(struct elutq_loader *loader, const char *what, const char *name);

/* Reads what the metadata say of the model into its configuration. Failures go to loader->status. */
void elutq_load_config(struct elutq_loader *loader);

/* Fills in which layers have a window, and how their heads turn, once there are layers. */
void elutq_load_layer_kinds(struct elutq_loader *loader);

#endif
