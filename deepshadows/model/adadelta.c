/* A step of Adadelta (arXiv:1212.5701, algorithm 1), each value read and written once. adadelta.py calls it. */

#include <math.h>

void adadelta(long from, long to, float *restrict weight, const float *restrict gradient, float *restrict squares,
              float *restrict deltas, float rate, float rho, float epsilon)
{
    for (long i = from; i < to; i++) {
        const float slope = gradient[i];
        squares[i] = rho * squares[i] + (1 - rho) * slope * slope;
        const float delta = sqrtf(deltas[i] + epsilon) / sqrtf(squares[i] + epsilon) * slope;
        deltas[i] = rho * deltas[i] + (1 - rho) * delta * delta;
        weight[i] -= rate * delta;
    }
}
