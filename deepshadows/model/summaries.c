/* The sums of domain.summaries in whole numbers: the same bits as torch's. */

#include <stdint.h>
#include <stdlib.h>

enum { SIZE = 64, ROW = 3 * SIZE, SUMMARIES = 20, BRIGHT = 750, DARK = 3 };

static int larger(int a, int b) { return a > b ? a : b; }

static int steps(const int16_t *row, int count, int lag)
{
    int sum = 0;
    for (int x = 0; x < count - lag; x++)
        sum += abs(row[x + lag] - row[x]);
    return sum;
}

/* of a square of blocks: the brightest, the sum of steps along rows */
static void measure_blocks(const uint16_t *block, int side, int result[2])
{
    for (int n = 0; n < side * side; n++) {
        result[0] = larger(result[0], block[n]);
        result[1] += n % side ? abs(block[n] - block[n - 1]) : 0;
    }
}

/* blocks of twice the side */
static void join_blocks(const uint16_t *block, int side, uint16_t *joined)
{
    for (int y = 0; y < side; y += 2)
        for (int x = 0; x < side; x += 2) {
            const uint16_t *at = block + y * side + x;
            *joined++ = at[0] + at[1] + at[side] + at[side + 1];
        }
}

static void summarise(const uint8_t *image, float out[SUMMARIES])
{
    int sum[3] = {0}, lags[4] = {0}, curvature = 0, colours[2] = {0}, brightest = 0, bright = 0, dark = 0;
    uint16_t twos[32 * 32], fours[16 * 16], eights[8 * 8];
    for (int y = 0; y < SIZE; y += 2) {
        const uint8_t *row = image + y * ROW, *next = row + ROW;
        int16_t band[3][SIZE], pair[3][SIZE], grey[SIZE], colour[SIZE], step[SIZE], grey_pair[SIZE];
        for (int x = 0; x < SIZE; x++)
            for (int b = 0; b < 3; b++) {
                band[b][x] = row[3 * x + b];
                pair[b][x] = row[3 * x + b] + next[3 * x + b];
            }
        for (int b = 0; b < 3; b++)
            for (int x = 0; x < SIZE; x++)
                sum[b] += pair[b][x];
        int16_t most = 0;
        for (int x = 0; x < SIZE; x++) {
            colour[x] = band[0][x] - band[2][x];
            grey[x] = band[0][x] + band[1][x] + band[2][x];
            grey_pair[x] = pair[0][x] + pair[1][x] + pair[2][x];
            most = grey[x] > most ? grey[x] : most;
            bright += grey[x] >= BRIGHT;
            dark += (band[0][x] <= DARK) | (band[1][x] <= DARK) | (band[2][x] <= DARK);
        }
        brightest = larger(brightest, most);
        for (int x = 0; x < SIZE - 1; x++)
            step[x] = grey[x + 1] - grey[x];
        for (int n = 0; n < 4; n++)
            lags[n] += steps(grey, SIZE, 1 << n);
        curvature += steps(step, SIZE - 1, 1);
        colours[0] += steps(colour, SIZE, 1);
        colours[1] += steps(colour, SIZE, 4);
        for (int x = 0; x < SIZE / 2; x++)
            twos[y / 2 * 32 + x] = grey_pair[2 * x] + grey_pair[2 * x + 1];
    }
    int blocks[3][2] = {0}, darkest = UINT16_MAX;
    measure_blocks(twos, 32, blocks[0]);
    join_blocks(twos, 32, fours);
    measure_blocks(fours, 16, blocks[1]);
    join_blocks(fours, 16, eights);
    measure_blocks(eights, 8, blocks[2]);
    for (int n = 0; n < 64; n++)
        darkest = eights[n] < darkest ? eights[n] : darkest;
    const int all[SUMMARIES] = {
        sum[0],     sum[1],     sum[2],       lags[0],      lags[1],      lags[2],      lags[3],
        curvature,  colours[0], colours[1],   brightest,    bright,       dark,         blocks[0][0],
        blocks[0][1], blocks[1][0], blocks[1][1], blocks[2][0], blocks[2][1], darkest,
    };
    for (int n = 0; n < SUMMARIES; n++)
        out[n] = (float)all[n];
}

/* uint8 (count, 64, 64, 3) -> float32 (count, 20) */
void summaries(const uint8_t *images, long count, float *out)
{
    for (long n = 0; n < count; n++)
        summarise(images + n * SIZE * ROW, out + n * SUMMARIES);
}
