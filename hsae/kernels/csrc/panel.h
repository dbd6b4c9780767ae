// The encoder's product, a register tile of tokens by latents at a time.
#pragma once
#include "vec.h"

// Rows of the encoder, PANEL latents side by side, so that one load takes the same dimension of LANES latents. Latents
// that fill up the last panel never fire.
void pack(const float *W, const float *b, int64_t latents, int64_t width, float *packed, float *bias) {
    int64_t panels = (latents + PANEL - 1) / PANEL;
    for (int64_t k = 0; k < panels * PANEL; k++) bias[k] = k >= latents ? -__builtin_inff() : b ? b[k] : 0;
    // Some dimensions at a time, so that what is written stays in the cache until it is full.
    for (int64_t p = 0; p < panels; p++)
        for (int64_t some = 0; some < width; some += 16)
            for (int64_t i = 0; i < PANEL; i++) {
                int64_t k = p * PANEL + i;
                for (int64_t j = some; j < least(some + 16, width); j++)
                    packed[(p * width + j) * PANEL + i] = k < latents ? W[k * width + j] : 0;
            }
}

int64_t panel(void) { return PANEL; }

// ROWS tokens, dimension by dimension, side by side. Tokens beyond the last are zeros.
INLINE void pack_tokens(const float *x, int64_t tokens, int64_t width, float *xt) {
    for (int64_t j = 0; j < width; j++)
        for (int m = 0; m < ROWS; m++) xt[j * ROWS + m] = m < tokens ? x[m * width + j] : 0;
}

INLINE void multiply(const float *xt, const float *w, const float *bias, int64_t width, vec u[ROWS][VECS]) {
    for (int m = 0; m < ROWS; m++)
        for (int v = 0; v < VECS; v++) u[m][v] = load(bias + v * LANES);
    for (int64_t j = 0; j < width; j++) {
        vec c[VECS];
        for (int v = 0; v < VECS; v++) c[v] = load(w + j * PANEL + v * LANES);
        for (int m = 0; m < ROWS; m++) {
            vec x = all(xt[j * ROWS + m]);
            for (int v = 0; v < VECS; v++) u[m][v] += x * c[v];
        }
    }
}
