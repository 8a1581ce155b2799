/* threads.h - the processors: what they can do, and how the threads of one parallel region share work and
 * wait for each other. Not part of the interface. Without OpenMP there is one thread, and all of this costs
 * nothing. */
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

/* The numbers below n that this thread takes: a stretch of them (memory is read best in one go), or every
 * THREADS-th (where they cost more and more). */
#define EACH(i, n) \
    for (size_t i = (n) * THREAD / THREADS, i##_end = (n) * (THREAD + 1) / THREADS; i < i##_end; i++)
#define DEAL(i, n) for (size_t i = THREAD, i##_step = THREADS; i < (n); i += i##_step)

/* Whether the processor has an instruction set of the engine's (by its name there), and the hypervisor and
 * the kernel let this process use it. */
int processor_has(const char *isa);

/* A place to wait for all threads of the region. Zero-initialise it; it can be used again at once. */
typedef struct meeting {
    atomic_uint arrived, turn, asleep;
} meeting;

/* Returns when all threads of the region have called it. Looks for a fraction of a millisecond, then sleeps.
 * OpenMP's own barrier looks for several milliseconds: beside other work on all processors that made two
 * threads ten times slower than one. */
void meet(meeting *m);

#endif
