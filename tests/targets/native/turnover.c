// A loop that does nothing but allocate and free, with a rare leak, beside caches of several ages.
//
//   turnover [PAIRS]
//
// Each PAIRSth allocation (ten thousandth) is one of `leaks`: a block of 4 KiB that is kept. As rarely each cache lets its
// oldest block go and takes a new one; they are full from the beginning. A line on stdin is answered by one of
// JSON: how many pairs of allocation and free the loop has made, how many blocks it has leaked, and when, on
// CLOCK_MONOTONIC.

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { LOOK_PAIRS = 160000 };

// Without this the compiler may know what `malloc` does and leave the pair out.
static void *volatile seen;

struct cache { void *(*make)(void); size_t blocks, oldest; void **at; };

static NOINLINE void *young(void) { return seen = malloc(300); }
static NOINLINE void *middle(void) { return seen = malloc(700); }
static NOINLINE void *middle_too(void) { return seen = malloc(704); }
static NOINLINE void *old(void) { return seen = malloc(1500); }

static struct cache caches[] = {
	{ young, 100, 0, 0 },
	{ middle, 10000, 0, 0 },
	{ middle_too, 30000, 0, 0 },
	{ old, 100000, 0, 0 },
};
enum { CACHES = sizeof caches / sizeof *caches };

static NOINLINE void leaks(void) { seen = malloc(4096); }

static NOINLINE void turns(unsigned long long n)
{
	void *block = malloc(32 + (n & 127));
	seen = block;
	free(block);
}

static NOINLINE void turn_over(struct cache *cache)
{
	void **at = &cache->at[cache->oldest];
	free(*at);
	*at = cache->make();
	cache->oldest = (cache->oldest + 1) % cache->blocks;
}

int main(int argc, char **argv)
{
	unsigned long long pairs = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000;
	unsigned long long look = pairs < LOOK_PAIRS ? LOOK_PAIRS / pairs : 1;
	for (int i = 0; i < CACHES; i++) {
		struct cache *cache = &caches[i];
		cache->at = calloc(cache->blocks, sizeof *cache->at);
		for (size_t n = 0; n < cache->blocks; n++)
			cache->at[n] = cache->make();
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready %d\n", getpid());
	fcntl(0, F_SETFL, O_NONBLOCK);
	for (unsigned long long leaked = 0;;) {
		for (unsigned long long n = 0; n < pairs; n++)
			turns(n);
		leaks();
		leaked++;
		for (int i = 0; i < CACHES; i++)
			turn_over(&caches[i]);
		char line;
		if (leaked % look == 0) {
			long got = read(0, &line, 1);
			if (got == 0)
				return 0;
			if (got == 1 && line == '\n') {
				struct timespec now;
				clock_gettime(CLOCK_MONOTONIC, &now);
				printf("{\"pairs\": %llu, \"leaked\": %llu, \"ns\": %lld}\n", leaked * pairs, leaked,
				       now.tv_sec * 1000000000LL + now.tv_nsec);
			}
		}
	}
}
