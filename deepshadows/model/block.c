/* What follows a convolution in training: ReLU, batch norm, max pool of 2, dropout, and the way back through them.
   Values lie (image, row, column, channel), in float or, with -DBF16, in bf16; sums are of one image each, in double,
   so that no result depends on how many threads share the work. block.py compiles this and calls it. */

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#ifdef BF16
typedef uint16_t value;
INLINE float up(value half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float whole;
    memcpy(&whole, &bits, 4);
    return whole;
}
INLINE value down(float whole)
{
    uint32_t bits;
    memcpy(&bits, &whole, 4);
    return (value)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#else
typedef float value;
INLINE float up(value whole) { return whole; }
INLINE value down(float whole) { return whole; }
#endif

enum { MOST = 64, PLACE = 3, KEPT = 4 }; /* channels; bits of a code: which of the four is the largest, and whether it stays */

typedef struct {
    int rows, columns, channels;        /* of what the convolution gives; rows and columns are even */
    const float *scale, *shift;         /* forward: of each channel, the batch norm */
    const float *slope, *level, *tilt;  /* backward: gradient = slope * what comes back - level - tilt * value */
    float gain;                         /* 1 / (1 - chance of dropout) */
    uint32_t chance;                    /* of dropout, of 65,536 */
} block;

INLINE float relu(value of) { const float whole = up(of); return whole < 0 ? 0 : whole; }

/* 32 random bits of one place: Chris Wellons' lowbias32. */
INLINE uint32_t random_bits(uint32_t seed, uint32_t place)
{
    uint32_t bits = seed + place * 0x9e3779b9u;
    bits = (bits ^ bits >> 16) * 0x7feb352du;
    bits = (bits ^ bits >> 15) * 0x846ca68bu;
    return bits ^ bits >> 16;
}

/* Without GCC's unrolling of the shortest loop, which keeps it from vector instructions. */
#define FOR_CHANNELS _Pragma("GCC unroll 1") _Pragma("GCC ivdep") for (int c = 0; c < channels; c++)

INLINE void image_sums(const block *b, int channels, const value *in, double *sums)
{
    memset(sums, 0, 2 * channels * sizeof *sums);
    for (int y = 0; y < b->rows; y++) {
        float sum[MOST] = {0}, squares[MOST] = {0};
        for (int x = 0; x < b->columns; x++, in += channels)
            FOR_CHANNELS
            {
                const float one = relu(in[c]);
                sum[c] += one;
                squares[c] += one * one;
            }
        for (int c = 0; c < channels; c++) {
            sums[c] += sum[c];
            sums[channels + c] += squares[c];
        }
    }
}

INLINE void image_forward(const block *b, int channels, const value *restrict in, uint32_t seed, value *restrict out,
                          uint16_t *restrict codes)
{
    const float *restrict scale = b->scale, *restrict shift = b->shift, gain = b->gain;
    const int line = b->columns * channels;
    const uint32_t chance = b->chance;
    uint32_t place = 0;
    for (int y = 0; y < b->rows; y += 2, in += 2 * line)
        for (int x = 0; x < line; x += 2 * channels, out += channels, codes += channels, place += channels)
            FOR_CHANNELS
            {
                const value *four = in + x + c;
                const float first = relu(four[0]) * scale[c] + shift[c];
                const float second = relu(four[channels]) * scale[c] + shift[c];
                const float third = relu(four[line]) * scale[c] + shift[c];
                const float fourth = relu(four[line + channels]) * scale[c] + shift[c];
                const float upper = second > first ? second : first, lower = fourth > third ? fourth : third;
                const uint32_t above = second > first ? 1 : 0, below = fourth > third ? 3 : 2;
                const uint32_t code = lower > upper ? below : above;
                const float most = lower > upper ? lower : upper;
                const uint32_t kept = random_bits(seed, place + c) >> 16 >= chance ? KEPT : 0;
                const float scaled = most * gain;
                out[c] = down(kept ? scaled : 0);
                codes[c] = (uint16_t)(code | kept);
            }
}

/* Sums of what comes back, and of its products with the values that it comes back to. */
INLINE void image_returned(const block *b, int channels, const value *restrict in, const value *restrict back,
                           const uint16_t *restrict codes, double *sums)
{
    const float gain = b->gain;
    const int line = b->columns * channels;
    memset(sums, 0, 2 * channels * sizeof *sums);
    for (int y = 0; y < b->rows; y += 2, in += 2 * line) {
        float sum[MOST] = {0}, products[MOST] = {0};
        for (int x = 0; x < line; x += 2 * channels, back += channels, codes += channels)
            FOR_CHANNELS
            {
                const value *four = in + x + c;
                const float first = relu(four[0]), second = relu(four[channels]);
                const float third = relu(four[line]), fourth = relu(four[line + channels]);
                const uint32_t code = codes[c], place = code & PLACE;
                const float upper = place == 0 ? first : second, lower = place == 2 ? third : fourth;
                const float returned = up(back[c]) * gain, one = code & KEPT ? returned : 0;
                sum[c] += one;
                products[c] += one * (place < 2 ? upper : lower);
            }
        for (int c = 0; c < channels; c++) {
            sums[c] += sum[c];
            sums[channels + c] += products[c];
        }
    }
}

INLINE void image_backward(const block *b, int channels, const value *restrict in, const value *restrict back,
                           const uint16_t *restrict codes, value *restrict out)
{
    const float *restrict slope = b->slope, *restrict level = b->level, *restrict tilt = b->tilt, gain = b->gain;
    const int line = b->columns * channels;
    for (int y = 0; y < b->rows; y += 2, in += 2 * line, out += 2 * line)
        for (int x = 0; x < line; x += 2 * channels, back += channels, codes += channels)
            FOR_CHANNELS
            {
                const value *four = in + x + c;
                value *to = out + x + c;
                const float first = relu(four[0]), second = relu(four[channels]);
                const float third = relu(four[line]), fourth = relu(four[line + channels]);
                const uint32_t code = codes[c], place = code & PLACE;
                const float scaled = up(back[c]) * gain * slope[c], one = code & KEPT ? scaled : 0;
                const float of_first = (place == 0 ? one : 0) - level[c] - tilt[c] * first;
                const float of_second = (place == 1 ? one : 0) - level[c] - tilt[c] * second;
                const float of_third = (place == 2 ? one : 0) - level[c] - tilt[c] * third;
                const float of_fourth = (place == 3 ? one : 0) - level[c] - tilt[c] * fourth;
                to[0] = down(first > 0 ? of_first : 0);
                to[channels] = down(second > 0 ? of_second : 0);
                to[line] = down(third > 0 ? of_third : 0);
                to[line + channels] = down(fourth > 0 ? of_fourth : 0);
            }
}

/* A loop over images for each number of channels, which the compiler then knows. */
#define FOR_IMAGES(call)                                                   \
    const long size = (long)b->rows * b->columns * b->channels;            \
    for (long n = from; n < to; n++)                                       \
        switch (b->channels) {                                             \
        case 16: { enum { channels = 16 }; call; break; }                  \
        case 32: { enum { channels = 32 }; call; break; }                  \
        case 64: { enum { channels = 64 }; call; break; }                  \
        }

void sums(const block *b, long from, long to, const value *in, double *out)
{
    FOR_IMAGES(image_sums(b, channels, in + n * size, out + 2 * n * channels))
}

void forward(const block *b, long from, long to, const value *in, const uint32_t *seeds, value *out, uint16_t *codes)
{
    FOR_IMAGES(image_forward(b, channels, in + n * size, seeds[n], out + n * size / 4, codes + n * size / 4))
}

void returned(const block *b, long from, long to, const value *in, const value *back, const uint16_t *codes, double *out)
{
    FOR_IMAGES(image_returned(b, channels, in + n * size, back + n * size / 4, codes + n * size / 4, out + 2 * n * channels))
}

void backward(const block *b, long from, long to, const value *in, const value *back, const uint16_t *codes, value *out)
{
    FOR_IMAGES(image_backward(b, channels, in + n * size, back + n * size / 4, codes + n * size / 4, out + n * size))
}
