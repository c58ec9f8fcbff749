/* What loads a model file: its configuration (model_config.c), its tensors (load_tensors.c) and matrices (load_matrix.c). */
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

/* Finds and checks the tensors of the configured model, and makes its layers. Failures go to loader->status. */
void elutq_load_tensors(struct elutq_loader *loader);

/* Fails if the file has a tensor that nobody has asked for. */
void elutq_refuse_unknown_tensors(struct elutq_loader *loader);

/* A tensor of the model, then one that it has; NULL when the file lacks it. */
const struct elutq_tensor *elutq_find_tensor(struct elutq_loader *loader, const char *name);

/*
 * A matrix, or with n_experts above 0 so many, one behind the other: *matrix is the first, and all have its bits, group size
 * and kind. False when loader->status says why there is none.
 */
bool elutq_load_matrix(struct elutq_loader *loader, const char *name, uint32_t n_experts, uint32_t n_rows,
                       uint32_t n_columns, struct elutq_matrix *matrix);

/* The hlq.tensor arrays describe the HLQ tensors and nothing else, so that looking one up takes no longer than it must. */
bool elutq_hlq_arrays_fit(const struct elutq_gguf *gguf);

#endif
