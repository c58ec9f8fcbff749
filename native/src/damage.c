#include "damage.h"

#include "hlq_block.h"

static bool is_finite_half(uint16_t half) {
    return (half & 0x7C00) != 0x7C00;
}

/* Centers may be negative, half scales (0x8001 and above are negative numbers) may not. */
static bool is_sound_block(const uint16_t *scales, uint32_t bits) {
    for (uint32_t i = 0; i < (bits + 1) * ELUTQ_TILE_ROWS; i++)
        if (!is_finite_half(scales[i]) || (i < bits * ELUTQ_TILE_ROWS && scales[i] > 0x8000))
            return false;
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
    const size_t n_blocks = (size_t)elutq_matrix_tiles(matrix) * elutq_matrix_groups(matrix);
    const size_t block_bytes = elutq_block_bytes(matrix->bits, matrix->group_size);
    for (size_t i = 0; i < n_blocks; i++)
        if (!is_sound_block((const uint16_t *)(matrix->data + i * block_bytes), matrix->bits))
            return false;
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
        const struct elutq_layer *layer = &model->layers[i];
        const struct elutq_linear *linears[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                                &layer->gate, &layer->up, &layer->down};
        for (size_t j = 0; j < sizeof linears / sizeof linears[0]; j++)
            if (!is_sound(&linears[j]->weight))
                return tensor_of(model, &linears[j]->weight);
    }
    return is_sound(&model->head.weight) ? NULL : tensor_of(model, &model->head.weight);
}
