// Causal self-attention with heads of width 4 on the CPU, forward and backward, in vectors of 16 keys.
// qkv: (batch, time, 3 * heads * 4), the queries first, then keys and values; no scaling of the scores;
// a query sees itself and the window - 1 tokens before it.  time is a multiple of 16 and at most 512.
// Compiled and called by narrow_attention.py.
#include <cstring>

typedef float vec __attribute__((vector_size(64)));
typedef int ivec __attribute__((vector_size(64)));
typedef float uvec __attribute__((vector_size(64), aligned(4)));

constexpr int D = 4, MAX_T = 512, N = 16;
constexpr float HIDDEN = -1e30f;

static inline vec splat(float x) { return vec{} + x; }

static inline float sum(vec a) {
    a += __builtin_shuffle(a, ivec{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
    a += __builtin_shuffle(a, ivec{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
    return (a[0] + a[1]) + (a[2] + a[3]);
}

static inline float largest(vec a) {
    float most = a[0];
    for (int i = 1; i < N; i++) most = a[i] > most ? a[i] : most;
    return most;
}

// e^x for x <= 0: 2^n times a polynomial for the fraction; the sum with 1.5 * 2^23 rounds to an integer.
static inline vec exponential(vec x) {
    const vec magic = splat(12582912.0f);
    x = x < splat(-86.0f) ? splat(-86.0f) : x;
    vec t = x * splat(1.44269504f);
    vec z = t + magic;
    vec f = t - (z - magic);
    vec p = splat(1.5403530e-4f);
    p = p * f + splat(1.3333558e-3f);
    p = p * f + splat(9.6181291e-3f);
    p = p * f + splat(5.5504109e-2f);
    p = p * f + splat(2.4022651e-1f);
    p = p * f + splat(6.9314718e-1f);
    p = p * f + splat(1.0f);
    return (vec)((ivec)p + ((ivec)z << 23));
}

struct Head {  // one head of one sequence, transposed so that 16 keys lie side by side
    alignas(64) float q[D][MAX_T], k[D][MAX_T], v[D][MAX_T];
    void load(const float* qkv, int T, int stride, int h) {
        for (int t = 0; t < T; t++)
            for (int d = 0; d < D; d++) {
                const float* row = qkv + (size_t)t * 3 * stride + h * D + d;
                q[d][t] = row[0], k[d][t] = row[stride], v[d][t] = row[2 * stride];
            }
    }
};

// visible[j - i + MAX_T] is 0 where query i sees key j, else a large negative number.
static void make_mask(float* visible, int window) {
    for (int x = 0; x < 2 * MAX_T + N; x++) {
        int distance = MAX_T - x;
        visible[x] = distance >= 0 && distance < window ? 0.0f : HIDDEN;
    }
}

static inline vec at(const float* p) { return *(const vec*)p; }

extern "C" void attention_forward(const float* qkv, float* out, float* lse, int B, int T, int H, int window) {
    static thread_local Head head;
    static thread_local float visible[2 * MAX_T + N];
    alignas(64) float scores[MAX_T];
    make_mask(visible, window);
    const int stride = H * D;
    for (int b = 0; b < B; b++)
        for (int h = 0; h < H; h++) {
            head.load(qkv + (size_t)b * T * 3 * stride, T, stride, h);
            for (int i = 0; i < T; i++) {
                const int first = (i - window + 1 > 0 ? i - window + 1 : 0) / N * N;
                const vec q0 = splat(head.q[0][i]), q1 = splat(head.q[1][i]);
                const vec q2 = splat(head.q[2][i]), q3 = splat(head.q[3][i]);
                vec top = splat(HIDDEN);
                for (int j = first; j <= i; j += N) {
                    vec s = *(const uvec*)(visible + MAX_T - i + j);
                    s += q0 * at(head.k[0] + j) + q1 * at(head.k[1] + j);
                    s += q2 * at(head.k[2] + j) + q3 * at(head.k[3] + j);
                    *(vec*)(scores + j) = s;
                    top = s > top ? s : top;
                }
                const float most = largest(top);
                vec total = {}, o0 = {}, o1 = {}, o2 = {}, o3 = {};
                for (int j = first; j <= i; j += N) {
                    const vec p = exponential(at(scores + j) - splat(most));
                    total += p;
                    o0 += p * at(head.v[0] + j), o1 += p * at(head.v[1] + j);
                    o2 += p * at(head.v[2] + j), o3 += p * at(head.v[3] + j);
                }
                const float z = sum(total);
                float* o = out + ((size_t)b * T + i) * stride + h * D;
                o[0] = sum(o0) / z, o[1] = sum(o1) / z, o[2] = sum(o2) / z, o[3] = sum(o3) / z;
                lse[((size_t)b * H + h) * T + i] = most + __builtin_logf(z);
            }
        }
}

extern "C" void attention_backward(const float* qkv, const float* out, const float* lse, const float* dout, float* dqkv,
                                   int B, int T, int H, int window) {
    static thread_local Head head, grad;
    static thread_local float visible[2 * MAX_T + N];
    make_mask(visible, window);
    const int stride = H * D;
    for (int b = 0; b < B; b++)
        for (int h = 0; h < H; h++) {
            head.load(qkv + (size_t)b * T * 3 * stride, T, stride, h);
            memset(&grad, 0, sizeof grad);
            for (int i = 0; i < T; i++) {
                const int first = (i - window + 1 > 0 ? i - window + 1 : 0) / N * N;
                const size_t at_out = ((size_t)b * T + i) * stride + h * D;
                const float *g = dout + at_out, *o = out + at_out;
                const vec q0 = splat(head.q[0][i]), q1 = splat(head.q[1][i]);
                const vec q2 = splat(head.q[2][i]), q3 = splat(head.q[3][i]);
                const vec g0 = splat(g[0]), g1 = splat(g[1]), g2 = splat(g[2]), g3 = splat(g[3]);
                const vec mean = splat(g[0] * o[0] + g[1] * o[1] + g[2] * o[2] + g[3] * o[3]);
                const vec norm = splat(lse[((size_t)b * H + h) * T + i]);
                vec d0 = {}, d1 = {}, d2 = {}, d3 = {};
                for (int j = first; j <= i; j += N) {
                    const vec k0 = at(head.k[0] + j), k1 = at(head.k[1] + j);
                    const vec k2 = at(head.k[2] + j), k3 = at(head.k[3] + j);
                    vec s = *(const uvec*)(visible + MAX_T - i + j) - norm;
                    s += q0 * k0 + q1 * k1;
                    s += q2 * k2 + q3 * k3;
                    const vec p = exponential(s);
                    vec dp = g0 * at(head.v[0] + j) + g1 * at(head.v[1] + j);
                    dp += g2 * at(head.v[2] + j) + g3 * at(head.v[3] + j);
                    const vec ds = p * (dp - mean);
                    d0 += ds * k0, d1 += ds * k1, d2 += ds * k2, d3 += ds * k3;
                    *(vec*)(grad.k[0] + j) += ds * q0, *(vec*)(grad.k[1] + j) += ds * q1;
                    *(vec*)(grad.k[2] + j) += ds * q2, *(vec*)(grad.k[3] + j) += ds * q3;
                    *(vec*)(grad.v[0] + j) += p * g0, *(vec*)(grad.v[1] + j) += p * g1;
                    *(vec*)(grad.v[2] + j) += p * g2, *(vec*)(grad.v[3] + j) += p * g3;
                }
                grad.q[0][i] = sum(d0), grad.q[1][i] = sum(d1), grad.q[2][i] = sum(d2), grad.q[3][i] = sum(d3);
            }
            for (int t = 0; t < T; t++)
                for (int d = 0; d < D; d++) {
                    float* row = dqkv + ((size_t)b * T + t) * 3 * stride + h * D + d;
                    row[0] = grad.q[d][t], row[stride] = grad.k[d][t], row[2 * stride] = grad.v[d][t];
                }
        }
}

// One query per row against cached keys and values, both (rows, 4, MAX_T); keys first ... last - 1 are visible.
extern "C" void attention_step(const float* q, const float* k, const float* v, float* out, int rows, int first,
                               int last) {
    static thread_local float visible[2 * MAX_T + N];
    alignas(64) float scores[MAX_T];
    make_mask(visible, last - first);
    const int start = first / N * N;
    for (int r = 0; r < rows; r++, q += D, out += D, k += D * MAX_T, v += D * MAX_T) {
        vec top = splat(HIDDEN);
        for (int j = start; j < last; j += N) {
            vec s = *(const uvec*)(visible + MAX_T - (last - 1) + j);
            for (int d = 0; d < D; d++) s += splat(q[d]) * *(const uvec*)(k + d * MAX_T + j);
            *(vec*)(scores + j) = s;
            top = s > top ? s : top;
        }
        const float most = largest(top);
        vec total = {}, o[D] = {};
        for (int j = start; j < last; j += N) {
            const vec p = exponential(at(scores + j) - splat(most));
            total += p;
            for (int d = 0; d < D; d++) o[d] += p * *(const uvec*)(v + d * MAX_T + j);
        }
        const float z = sum(total);
        for (int d = 0; d < D; d++) out[d] = sum(o[d]) / z;
    }
}
