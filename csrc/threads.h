/* threads.h - how many processors there are to use, and how the threads of a team share work and wait for each
 * other. Not part of the interface. Teams are OpenMP's; without it (Apple's clang, ThreadSanitizer) they are
 * made of POSIX threads for each piece of work, and one thread is the default. */
#ifndef THREADS_H
#define THREADS_H
#include <stdatomic.h>
#include <stddef.h>
#ifdef _OPENMP
#include <omp.h>
#define THREAD ((size_t)omp_get_thread_num())
#define THREADS ((size_t)omp_get_num_threads())
#else
extern _Thread_local size_t thread_number, team_size;
#define THREAD thread_number
#define THREADS team_size
#endif

/* Runs work(context) on `threads` threads at once, this one among them, numbered THREAD of THREADS; returns
 * when all have. On fewer where the system refuses that many. At most MAX_THREADS. */
#define MAX_THREADS 1024
void team(size_t threads, void (*work)(void *context), void *context);

/* The numbers below n that this thread takes: a stretch of them (memory is read best in one go), or every
 * THREADS-th (where they cost more and more). */
#define EACH(i, n) \
    for (size_t i = (n) * THREAD / THREADS, i##_end = (n) * (THREAD + 1) / THREADS; i < i##_end; i++)
#define DEAL(i, n) for (size_t i = THREAD, i##_step = THREADS; i < (n); i += i##_step)

/* A place to wait for all threads of the team. Zero-initialise it; it can be used again at once. */
typedef struct team_barrier {
    atomic_uint arrived, turn, asleep;
} team_barrier;

/* Returns when all threads of the team have called it. Looks for a fraction of a millisecond, then sleeps.
 * OpenMP's own barrier looks for several milliseconds: beside other work on all processors that made two
 * threads ten times slower than one. */
void barrier(team_barrier *b);

#endif
