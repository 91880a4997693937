/* A step of Adadelta (arXiv:1212.5701, algorithm 1), each value read and written once. adadelta.py calls it.
   Numbers below 1.2e-38 are zero, whatever mode the calling thread is in: CPUs take many times as long for them. */

#include <math.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

void adadelta(long from, long to, float *restrict weight, const float *restrict gradient, float *restrict squares,
              float *restrict deltas, float rate, float rho, float epsilon)
{
#ifdef __SSE__
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040); /* flush to zero, denormals are zero */
#endif
    for (long i = from; i < to; i++) {
        const float slope = gradient[i];
        squares[i] = rho * squares[i] + (1 - rho) * slope * slope;
        const float delta = sqrtf(deltas[i] + epsilon) / sqrtf(squares[i] + epsilon) * slope;
        deltas[i] = rho * deltas[i] + (1 - rho) * delta * delta;
        weight[i] -= rate * delta;
    }
#ifdef __SSE__
    _mm_setcsr(mode);
#endif
}
