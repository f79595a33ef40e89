// The C side: three leaks of known size, and a thread that calls Go.

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "_cgo_export.h"
#include "mixed.h"

#define NOINLINE __attribute__((noinline))

// What leaks is reachable, as in most real leaks.
struct link { struct link *next; };
static struct link *large, *small;

static NOINLINE void keep(struct link **list, struct link *block)
{
	if (!block)
		abort();
	block->next = *list;
	*list = block;
}

NOINLINE void leak_large(size_t bytes)
{
	keep(&large, malloc(bytes)); // the large leak
}

NOINLINE void leak_small(size_t bytes)
{
	keep(&small, malloc(bytes)); // the small leak
}

NOINLINE void leak_mapping(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		abort();
	memset(at, 1, bytes);
}

static NOINLINE void *clock_thread(void *unused)
{
	(void)unused;
	struct timespec next;
	clock_gettime(CLOCK_MONOTONIC, &next);
	while (onTick()) {
		// What a stall holds up is made up for.
		next.tv_nsec += 100 * 1000 * 1000;
		if (next.tv_nsec >= 1000 * 1000 * 1000) {
			next.tv_nsec -= 1000 * 1000 * 1000;
			next.tv_sec++;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}
	return NULL;
}

void start_clock(void)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, clock_thread, NULL))
		abort();
}
