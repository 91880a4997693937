/* The network from pixels to hidden layer, one image at a time so that what lies between two layers stays in cache.
   For x86 with AVX512-BF16 and -VNNI. fused.py folds and orders the weights, compiles this and calls it. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")

enum {
    SIZE = 64,
    IMAGE_ROW = 3 * (SIZE + 2), /* bytes, with a margin of one pixel at both ends */
    FEATURES = 4096,
    HIDDEN = 1024,
    PANEL = 32,   /* outputs of a tile: two registers */
    WEIGHTS = 128, /* bytes of a panel's weights for one step: 2 inputs in bf16, or 4 in two parts of int8 */
    TILE = 8,     /* 2 rows of 4 pixels, or 8 images: what shares each weight that is loaded */
};

typedef struct {
    const char *kernel;                /* a panel after the other, in it the rows of the kernel, in these the steps */
    const float *scale, *bias, *shift; /* of each output: max(scale * sum + bias, 0) + shift */
} layer;

INLINE __m512i broadcast(const void *four_bytes)
{
    int value;
    memcpy(&value, four_bytes, 4);
    return _mm512_set1_epi32(value);
}

INLINE void store(__m512 sum, const layer *l, int output, char *to)
{
    const __m512 scaled = _mm512_fmadd_ps(sum, _mm512_loadu_ps(l->scale + output), _mm512_loadu_ps(l->bias + output));
    const __m512 value = _mm512_add_ps(_mm512_max_ps(scaled, _mm512_setzero_ps()), _mm512_loadu_ps(l->shift + output));
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(value));
}

/* Add to each sum[i] the products of `steps` pairs of bf16 at `in` + i / 4 * four + i % 4 * one. */
INLINE void add_products(__m512 sum[TILE][2], const char *in, long four, long one, const char *kernel, int steps)
{
    for (int step = 0; step < steps; step++, in += 4, kernel += WEIGHTS) {
        const __m512bh first = (__m512bh)_mm512_loadu_si512(kernel);
        const __m512bh second = (__m512bh)_mm512_loadu_si512(kernel + WEIGHTS / 2);
        UNROLLED for (int i = 0; i < TILE; i++) {
            const __m512bh both = (__m512bh)broadcast(in + i / 4 * four + i % 4 * one);
            sum[i][0] = _mm512_dpbf16_ps(sum[i][0], both, first);
            sum[i][1] = _mm512_dpbf16_ps(sum[i][1], both, second);
        }
    }
}

/* Pixels, with their margin, times weights of 16 bits in a low and a high byte: exact in int32. */
INLINE void first_block(const uint8_t *image, const layer *l, char *out)
{
    for (int y = 0; y < SIZE; y += 2)
        for (int x = 0; x < SIZE; x += 4) {
            __m512i sum[TILE][2] = {0};
            UNROLLED for (int row = 0; row < 3; row++)
                UNROLLED for (int step = 0; step < 3; step++) {
                    const char *kernel = l->kernel + (3 * row + step) * WEIGHTS;
                    const __m512i low = _mm512_loadu_si512(kernel), high = _mm512_loadu_si512(kernel + WEIGHTS / 2);
                    UNROLLED for (int i = 0; i < TILE; i++) {
                        const __m512i four = broadcast(image + (y + row + i / 4) * IMAGE_ROW + 3 * (x + i % 4) + 4 * step);
                        sum[i][0] = _mm512_dpbusd_epi32(sum[i][0], four, low);
                        sum[i][1] = _mm512_dpbusd_epi32(sum[i][1], four, high);
                    }
                }
            UNROLLED for (int i = 0; i < TILE; i++)
                sum[i][0] = _mm512_add_epi32(sum[i][0], _mm512_slli_epi32(sum[i][1], 8));
            UNROLLED for (int i = 0; i < 4; i += 2) {
                const __m512i pooled = _mm512_max_epi32(_mm512_max_epi32(sum[i][0], sum[i + 1][0]),
                                                        _mm512_max_epi32(sum[i + 4][0], sum[i + 5][0]));
                const int at = (y / 2 + 1) * (SIZE / 2 + 2) + (x + i) / 2 + 1;
                store(_mm512_cvtepi32_ps(pooled), l, 0, out + 2 * 16 * at);
            }
        }
}

/* bf16 (size + 2, size + 2, inputs) -> bf16 (size / 2, size / 2, outputs) within `margin` pixels. */
INLINE void block(const char *in, int size, int inputs, const layer *l, int outputs, char *out, int margin)
{
    const long pixel = 2 * inputs, row = (size + 2) * pixel;
    const int steps = 3 * inputs / 2;
    for (int panel = 0; panel < outputs; panel += PANEL)
        for (int y = 0; y < size; y += 2)
            for (int x = 0; x < size; x += 4) {
                __m512 sum[TILE][2] = {0};
                for (int k = 0; k < 3; k++)
                    add_products(sum, in + (y + k) * row + x * pixel, row, pixel,
                                 l->kernel + (panel / PANEL * 3 + k) * steps * WEIGHTS, steps);
                UNROLLED for (int i = 0; i < 4; i += 2)
                    UNROLLED for (int half = 0; half < 2; half++) {
                        const __m512 pooled = _mm512_max_ps(_mm512_max_ps(sum[i][half], sum[i + 1][half]),
                                                            _mm512_max_ps(sum[i + 4][half], sum[i + 5][half]));
                        const int at = (y / 2 + margin) * (size / 2 + 2 * margin) + (x + i) / 2 + margin;
                        const int output = panel + PANEL / 2 * half;
                        store(pooled, l, output, out + 2 * (at * outputs + output));
                    }
            }
}

static void dense(const char *features, long count, const layer *l, float *hidden)
{
    const long row = 2 * FEATURES;
    for (int panel = 0; panel < HIDDEN; panel += PANEL)
        for (long n = 0; n < count; n += TILE) {
            __m512 sum[TILE][2] = {0};
            add_products(sum, features + n * row, 4 * row, row, l->kernel + panel / PANEL * (FEATURES / 2L) * WEIGHTS,
                         FEATURES / 2);
            UNROLLED for (int i = 0; i < TILE; i++)
                UNROLLED for (int half = 0; half < 2; half++) {
                    const int output = panel + PANEL / 2 * half;
                    const __m512 value = _mm512_add_ps(sum[i][half], _mm512_loadu_ps(l->bias + output));
                    _mm512_storeu_ps(hidden + (n + i) * HIDDEN + output, _mm512_max_ps(value, _mm512_setzero_ps()));
                }
        }
}

/* uint8 (count, 64, 64, 3) -> float32 (count, 1024). `features` and `hidden` have room for 7 more images, since 8 are
   taken at a time. The buffers' margins are never written: they stay zero. */
void hidden_layer(const layer layers[4], const uint8_t *images, long count, char *features, float *hidden)
{
    static _Thread_local uint8_t image[(SIZE + 2) * IMAGE_ROW + 4];
    static _Thread_local char half[34 * 34 * 16 * 2], quarter[18 * 18 * 32 * 2];
    for (long n = 0; n < count; n++) {
        for (int y = 0; y < SIZE; y++)
            memcpy(image + (y + 1) * IMAGE_ROW + 3, images + (n * SIZE + y) * 3 * SIZE, 3 * SIZE);
        first_block(image, &layers[0], half);
        block(half, 32, 16, &layers[1], 32, quarter, 1);
        block(quarter, 16, 32, &layers[2], 64, features + n * FEATURES * 2, 0);
    }
    dense(features, count, &layers[3], hidden);
}
