#include "damage.h"

#include <math.h>

#include "hlq_block.h"

static bool is_finite_half(uint16_t half) {
    return (half & 0x7C00) != 0x7C00;
}

/*
 * Centers may be negative, half scales may not. A byte stands for a sound number, but an even kind's half scales double from
 * plane to plane, and can leave the range.
 */
static bool is_sound_block(const struct elutq_block *block) {
    for (uint32_t row = 0; row < ELUTQ_TILE_ROWS; row++) {
        for (uint32_t k = 0; k < block->bits; k++) {
            const float half_scale = elutq_half_scale(block, k, row);
            if (!(half_scale >= 0 && half_scale <= ELUTQ_LARGEST_HALF))
                return false;
        }
        if (!isfinite(elutq_center(block, row)))
            return false;
    }
    return true;
}

static bool is_sound(const struct elutq_matrix *matrix) {
    if (matrix->bits == 16) {
        const uint16_t *weights = (const uint16_t *)matrix->data;
        for (size_t i = 0; i < (size_t)matrix->n_rows * matrix->n_columns; i++)
            if (!is_finite_half(weights[i]))
                return false;
        return true;
    }
    for (uint32_t tile = 0; tile < elutq_matrix_tiles(matrix); tile++)
        for (uint32_t group = 0; group < elutq_matrix_groups(matrix); group++) {
            const struct elutq_block block = elutq_block_at(matrix, tile, group);
            if (!is_sound_block(&block))
                return false;
        }
    return true;
}

static const struct elutq_tensor *tensor_of(const struct elutq_model *model, const struct elutq_matrix *matrix) {
    for (uint64_t i = 0; i < model->gguf.n_tensors; i++)
        if (model->gguf.tensors[i].data == matrix->data)
            return &model->gguf.tensors[i];
    return NULL;
}

const struct elutq_tensor *elutq_find_damage(const struct elutq_model *model) {
    if (!is_sound(&model->embedding))
        return tensor_of(model, &model->embedding);
    for (uint32_t i = 0; i < model->config.n_layers; i++) {
        struct elutq_stored_matrix stored[ELUTQ_LAYER_MATRICES];
        const unsigned n = elutq_layer_matrices(model, i, stored);
        for (unsigned j = 0; j < n; j++)
            for (uint32_t of = 0; of < stored[j].n_stored; of++) {
                const struct elutq_matrix matrix = elutq_matrix_behind(stored[j].matrix, of);
                if (!is_sound(&matrix))
                    return tensor_of(model, stored[j].matrix);
            }
    }
    return is_sound(&model->head.weight) ? NULL : tensor_of(model, &model->head.weight);
}
