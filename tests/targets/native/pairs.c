// Allocates and frees a block of 32 to 159 bytes, as fast as it can, and says four times a second how often
// in a second of its processor time: what else the machine does has little part in that. It ends when stdin
// closes.

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

// Pairs between two looks at the clock.
#define BATCH 1024

// Without this the compiler may leave the pair out.
static void *volatile seen;

static double now(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

// Into a buffer of our own: stdio would allocate one.
static void tell(const char *name, double value)
{
	static char line[64];
	int length = snprintf(line, sizeof line, "{\"%s\":%.0f}\n", name, value);
	if (write(1, line, length) != length)
		exit(0);
}

static void __attribute__((noinline)) churn(void)
{
	for (unsigned i = 0; i < BATCH; i++) {
		void *block = malloc(32 + i % 128);
		seen = block;
		free(block);
	}
}

int main(void)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };
	tell("ready", getpid());
	double start = now(CLOCK_MONOTONIC), spent = now(CLOCK_THREAD_CPUTIME_ID);
	for (unsigned long pairs = 0;;) {
		churn();
		pairs += BATCH;
		if (now(CLOCK_MONOTONIC) - start < 0.25)
			continue;
		double end = now(CLOCK_THREAD_CPUTIME_ID);
		tell("objects_per_s", pairs / (end - spent));
		pairs = 0;
		start = now(CLOCK_MONOTONIC);
		spent = end;
		if (poll(&input, 1, 0) > 0)
			return 0;
	}
}
