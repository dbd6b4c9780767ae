// SoftHebb's sums over tokens: the encoder's product, the signed softmax, and its product with the activations.
#include "exp2.h"
#include "panel.h"

typedef struct {
    const float *x, *packed, *bias;
    int64_t tokens, width, latents, queue;
    float temperature;
    int is_signed;
    float *drive;      // [token, latent], or NULL
    float *s;          // [panel, token, PANEL], panels `step` apart
    int64_t step;
    float *share;      // [token]: what an exponential is multiplied by to be a signal
    float *rows;       // [token, wide]: x, filled up with zeros to whole tiles of ROWS dimensions
    int64_t wide;
    float *sx, *sum, *size; // [panel, wide, PANEL], [latent], [latent]
    int64_t *fired;    // [thread, padded]
    float *total;      // [token]
} softhebb_t;

static int64_t panels_of(int64_t latents) { return (latents + PANEL - 1) / PANEL; }

static int64_t wide_of(int64_t width) { return (width + ROWS - 1) / ROWS * ROWS; }

// A panel's tokens, and room for one more: at a power of two, a token's panels would push each other out of the cache.
static int64_t step_of(int64_t tokens) { return (tokens + 1) * PANEL; }

// A token's softmax over panels that lie `step` apart, but for the factor that it gives; with is_signed that is below
// 0, and the winner negated. `tops` has the highest drives of each lane.
static float compete(float *s, int64_t panels, int64_t step, vec tops, float temperature, int is_signed) {
    float top = tops[0];
    for (int i = 1; i < LANES; i++) top = tops[i] > top ? tops[i] : top;
    float *winner = NULL;
    vec sums = {};
    for (int64_t p = 0; p < panels; p++)
        for (int v = 0; v < PANEL; v += LANES) {
            vec u = load(s + p * step + v);
            if (!winner) {
                uint32_t bits = at_least(u, all(top));
                if (bits) winner = s + p * step + v + __builtin_ctz(bits);
            }
            vec e = exp2_of(all(temperature * LOG2E) * (u - all(top)));
            sums += e;
            store(s + p * step + v, e);
        }
    if (is_signed && winner) *winner = -*winner;
    return (is_signed ? -1 : 1) / sum(sums);
}

static void drive_share(void *job, int thread, int threads) {
    softhebb_t *a = job;
    int64_t panels = panels_of(a->latents), tiles = 4, batch = tiles * ROWS;
    float *xt = malloc(batch * a->width * sizeof *xt);
    int64_t *fired = a->fired + thread * panels * PANEL;
    int32_t *counts = calloc(panels * PANEL, sizeof *counts);
    (void)threads;
    memset(fired, 0, panels * PANEL * sizeof *fired);
    for (int64_t first; (first = next(&a->queue, batch)) < a->tokens;) {
        int64_t here = least(batch, a->tokens - first);
        vec totals[4 * ROWS] = {}, tops[4 * ROWS];
        for (int64_t t = 0; t < batch; t++) tops[t] = all(-__builtin_inff());
        for (int64_t t = 0; t < here; t += ROWS)
            pack_tokens(a->x + (first + t) * a->width, here - t, a->width, xt + t * a->width);
        for (int64_t p = 0; p < panels; p++)
            for (int64_t t = 0; t < here; t += ROWS) {
                vec u[ROWS][VECS];
                multiply(xt + t * a->width, a->packed + p * PANEL * a->width, a->bias + p * PANEL, a->width, u);
                for (int m = 0; m < least(ROWS, here - t); m++)
                    for (int v = 0; v < VECS; v++) {
                        int32_t *count = counts + p * PANEL + v * LANES;
                        ivec on = u[m][v] > (vec){};
                        *(ivec *)count -= on;
                        totals[t + m] += (vec)(on & (ivec)u[m][v]);
                        tops[t + m] = higher(u[m][v], tops[t + m]);
                        store(a->s + p * a->step + (first + t + m) * PANEL + v * LANES, u[m][v]);
                        if (a->drive) {
                            int64_t k = p * PANEL + v * LANES;
                            float *out = a->drive + (first + t + m) * a->latents + k;
                            if (k + LANES <= a->latents) store(out, u[m][v]);
                            else for (int i = 0; k + i < a->latents; i++) out[i] = u[m][v][i];
                        }
                    }
            }
        for (int64_t t = 0; t < here; t++) {
            float *s = a->s + (first + t) * PANEL;
            a->share[first + t] = compete(s, panels, a->step, tops[t], a->temperature, a->is_signed);
            a->total[first + t] = sum(totals[t]);
            memset(a->rows + (first + t) * a->wide, 0, a->wide * sizeof(float));
            memcpy(a->rows + (first + t) * a->wide, a->x + (first + t) * a->width, a->width * sizeof(float));
        }
    }
    for (int64_t k = 0; k < panels * PANEL; k++) fired[k] = counts[k];
    free(counts), free(xt);
}

#define SOME 64 // tokens whose signals lie in the first cache

static void product_share(void *job, int thread, int threads) {
    softhebb_t *a = job;
    int64_t panels = panels_of(a->latents);
    float *out = malloc(a->wide * PANEL * sizeof *out);
    (void)thread, (void)threads;
    for (int64_t p; (p = next(&a->queue, 1)) < panels;) {
        float *s = a->s + p * a->step, *sx = a->sx + p * a->wide * PANEL;
        vec sums[VECS] = {}, sizes[VECS] = {};
        memset(out, 0, a->wide * PANEL * sizeof *out);
        for (int64_t first = 0; first < a->tokens; first += SOME) {
            int64_t end = least(first + SOME, a->tokens);
            for (int64_t t = first; t < end; t++)
                for (int v = 0; v < VECS; v++) {
                    vec c = load(s + t * PANEL + v * LANES) * all(a->share[t]);
                    store(s + t * PANEL + v * LANES, c);
                    sums[v] += c;
                    sizes[v] += higher(c, -c);
                }
            for (int64_t j = 0; j < a->wide; j += ROWS) {
                vec tile[ROWS][VECS];
                for (int m = 0; m < ROWS; m++)
                    for (int v = 0; v < VECS; v++) tile[m][v] = load(out + (j + m) * PANEL + v * LANES);
                for (int64_t t = first; t < end; t++) {
                    vec c[VECS];
                    for (int v = 0; v < VECS; v++) c[v] = load(s + t * PANEL + v * LANES);
                    for (int m = 0; m < ROWS; m++) {
                        vec x = all(a->rows[t * a->wide + j + m]);
                        for (int v = 0; v < VECS; v++) tile[m][v] += x * c[v];
                    }
                }
                for (int m = 0; m < ROWS; m++)
                    for (int v = 0; v < VECS; v++) store(out + (j + m) * PANEL + v * LANES, tile[m][v]);
            }
        }
        for (int64_t i = 0; i < a->wide * PANEL; i += LANES) store(sx + i, load(sx + i) + load(out + i));
        for (int64_t i = 0, k; i < PANEL && (k = p * PANEL + i) < a->latents; i++) {
            a->sum[k] += sums[i / LANES][i % LANES];
            a->size[k] += sizes[i / LANES][i % LANES];
        }
    }
    free(out);
}

// How many numbers `softhebb` wants as `work`.
int64_t work_size(int64_t tokens, int64_t width, int64_t latents) {
    return panels_of(latents) * step_of(tokens) + tokens * (1 + wide_of(width));
}

// How many numbers `softhebb` adds sᵀ x to: [panel, dimension, PANEL], with dimensions filled up with zeros.
int64_t sums_size(int64_t width, int64_t latents) { return panels_of(latents) * PANEL * wide_of(width); }

// With s the signed softmax of temperature · (W x + b), add sᵀ x to sx, Σ s to sum and Σ |s| to size, over tokens; to
// fired how often each drive was above 0. `total` is each token's sum of those drives. `drive` is filled unless NULL.
void softhebb(const float *x, const float *packed, const float *bias, int64_t tokens, int64_t width, int64_t latents,
              float temperature, int64_t is_signed, float *drive, float *work, float *sx, float *sum, float *size,
              float *fired, float *total, int64_t threads) {
    int64_t padded = panels_of(latents) * PANEL, step = step_of(tokens);
    float *share_of = work + panels_of(latents) * step;
    softhebb_t a = {.x = x, .packed = packed, .bias = bias, .tokens = tokens, .width = width, .latents = latents,
                    .temperature = temperature, .is_signed = is_signed, .drive = drive, .s = work,
                    .step = step, .share = share_of, .rows = share_of + tokens, .wide = wide_of(width),
                    .sx = sx, .sum = sum, .size = size, .total = total};
    a.fired = calloc(threads * padded, sizeof *a.fired);
    share(drive_share, &a, threads);
    a.queue = 0;
    share(product_share, &a, threads);
    for (int64_t k = 0; k < latents; k++) {
        int64_t n = 0;
        for (int64_t t = 0; t < threads; t++) n += a.fired[t * padded + k];
        fired[k] += n;
    }
    free(a.fired);
}
