/* threads.h - how the threads of one parallel region share work and wait for each other. Not part of the
 * interface. Without OpenMP there is one thread, and all of this costs nothing. */
#ifndef THREADS_H
#define THREADS_H
#include <stdatomic.h>
#include <stddef.h>
#ifdef _OPENMP
#include <omp.h>
#define THREAD ((size_t)omp_get_thread_num())
#define THREADS ((size_t)omp_get_num_threads())
#else
#define THREAD ((size_t)0)
#define THREADS ((size_t)1)
#endif

/* The numbers below n that this thread takes: every THREADS-th. */
#define EACH(i, n) for (size_t i = THREAD, i##_step = THREADS; i < (n); i += i##_step)

/* A place to wait for all threads of the region. Zero-initialise it; it can be used again at once. */
typedef struct meeting {
    atomic_uint arrived, turn, asleep;
} meeting;

/* Returns when all threads of the region have called it. Spins for some 50 microseconds, then sleeps.
 * OpenMP's own barrier spins for milliseconds, and on a machine with other work to do that made two threads
 * ten times slower than one. */
void meet(meeting *m);

#endif
