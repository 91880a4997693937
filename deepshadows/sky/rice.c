/* Tiles of RICE_1 (Rice, Yeh & Miller 1993; FITS standard 4.0, sections 10.2 and 10.4.1), several pixels a step of cfitsio's.

   A block of differences says in fsbits bits how many low bits each has; its high part counts zeros. Floating-point
   pixels are integers scaled, with or without the subtractive dither that begins anew in each tile. */

#include <stdint.h>
#include <string.h>

enum { RANDOMS = 10000, ZERO_VALUE = -2147483646 };
enum { NO_DITHER = -1, DITHER_2 = 2 };

/* At least 57 bits from bit `at` on, the first on top. The caller's data goes on for 1024 bytes after its end. */
static inline uint64_t peek(const uint8_t *data, uint64_t at)
{
    uint64_t word;
    memcpy(&word, data + (at >> 3), 8);
    return __builtin_bswap64(word) << (at & 7);
}

static inline uint32_t unfold(uint32_t folded) { return (folded >> 1) ^ -(folded & 1); }

/* The integers of one tile, of 2 or 4 bytes each; 0, or 1 where its bytes end too early. */
static int tile(const uint8_t *data, int64_t size, int64_t count, int bytes, int block, int32_t *out)
{
    const int field = bytes == 4 ? 5 : 4, raw = bytes == 4 ? 25 : 14, bits = 8 * bytes;
    const uint64_t end = 8 * (uint64_t)size;
    uint64_t at = bits;
    uint32_t last = peek(data, 0) >> (64 - bits);
    if (size < bytes)
        return 1;
    for (int64_t first = 0; first < count; first += block) {
        const int64_t stop = first + block < count ? first + block : count;
        const int low = (int)(peek(data, at) >> (64 - field)) - 1;
        at += field;
        if (low < 0) {
            for (int64_t i = first; i < stop; i++)
                out[i] = (int32_t)last;
        } else if (low == raw) {
            for (int64_t i = first; i < stop; i++, at += bits)
                out[i] = (int32_t)(last += unfold((uint32_t)(peek(data, at) >> (64 - bits))));
        } else {
            for (int64_t i = first; i < stop; i++) {
                uint64_t word = peek(data, at);
                uint32_t high = 0;
                while (__builtin_expect(word >> 8 == 0, 0)) {
                    high += 48, at += 48;
                    if (at > end)
                        return 1;
                    word = peek(data, at);
                }
                const int zeros = __builtin_clzll(word);
                high += zeros, at += zeros + 1;
                word = zeros + 1 + low <= 57 ? word << (zeros + 1) : peek(data, at);
                at += low;
                out[i] = (int32_t)(last += unfold(high << low | (uint32_t)(word >> 1 >> (63 - low))));
            }
        }
        if (at > end)
            return 1;
    }
    if (bytes == 2)
        for (int64_t i = 0; i < count; i++)
            out[i] = (int16_t)out[i];
    return 0;
}

void rice_randoms(float *randoms)
{
    double seed = 1;
    for (int i = 0; i < RANDOMS; i++) {
        const double next = 16807.0 * seed;
        seed = next - 2147483647.0 * (int)(next / 2147483647.0);
        randoms[i] = (float)(seed / 2147483647.0);
    }
}

static void scaled(const int32_t *in, int64_t count, double scale, double zero, int dither, int64_t number,
                   const float *randoms, float *out)
{
    if (dither == NO_DITHER) {
        for (int64_t i = 0; i < count; i++)
            out[i] = (float)(in[i] * scale + zero);
        return;
    }
    int seed = (int)(number % RANDOMS), next = (int)(randoms[seed] * 500.0);
    for (int64_t first = 0; first < count;) {
        const int64_t stop = count - first < RANDOMS - next ? count : first + RANDOMS - next;
        const float *random = randoms + next - first;
        for (int64_t i = first; i < stop; i++)
            out[i] = (float)(((double)in[i] - random[i] + 0.5) * scale + zero);
        if (dither == DITHER_2)
            for (int64_t i = first; i < stop; i++)
                out[i] = in[i] == ZERO_VALUE ? 0.0f : out[i];
        first = stop, seed = (seed + 1) % RANDOMS, next = (int)(randoms[seed] * 500.0);
    }
}

/* Tiles of `pixels` pixels each, `total` in all; returns the number of the first bad one, -1 for none.

   integers: `total` of them, the result where scale is NULL, else room for one tile.
   number: of the first tile, that of its dither. blank: what stands for NaN where has_blank. */
int64_t rice_tiles(const uint8_t *heap, const int64_t *offset, const int64_t *size, int64_t pixels, int64_t total,
                   int bytes, int block, int32_t *integers, const double *scale, const double *zero, int dither,
                   int64_t number, int has_blank, const int32_t *blank, const float *randoms, float *out)
{
    for (int64_t n = 0, first = 0; first < total; n++, first += pixels) {
        const int64_t count = total - first < pixels ? total - first : pixels;
        int32_t *values = scale ? integers : integers + first;
        if (tile(heap + offset[n], size[n], count, bytes, block, values))
            return n;
        if (!scale)
            continue;
        scaled(values, count, scale[n], zero[n], dither, number + n, randoms, out + first);
        if (has_blank)
            for (int64_t i = 0; i < count; i++)
                if (values[i] == blank[n])
                    out[first + i] = __builtin_nanf("");
    }
    return -1;
}
