// Blocks of many sizes, from tens of bytes to more than a sampler's period, each range of sizes from a
// function of its own, and the truth about it: what every function has allocated, and what of it was freed.
//
//   sizes
//
// Lines on stdin: "run" allocates the blocks of all functions in a random order and frees every fourth, three
// times, from `first`, `second` and `third`; "clear" frees the others, "crowd N" keeps N blocks of 48 bytes, "deep N DEPTH" keeps a block for each of N
// stacks of DEPTH calls. Each is answered, when it is done, by a line of JSON.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
#define MiB ((size_t)1 << 20)

// Sizes lie between half of `mean` and once and a half of it, and add up to about `total`.
#define FUNCTIONS(f) \
	f(bytes_90, 90, 4 * MiB) f(bytes_300, 300, 4 * MiB) f(bytes_900, 900, 4 * MiB) \
	f(bytes_1500, 1500, 4 * MiB) f(bytes_2000, 2000, 16 * MiB) f(bytes_4000, 4000, 16 * MiB) \
	f(bytes_8000, 8000, 16 * MiB) f(bytes_12000, 12000, 150 * MiB) f(bytes_20000, 20000, 150 * MiB) \
	f(bytes_35000, 35000, 150 * MiB) f(bytes_60000, 60000, 150 * MiB) f(bytes_90000, 90000, 150 * MiB) \
	f(bytes_130000, 130000, 150 * MiB) f(bytes_200000, 200000, 150 * MiB) \
	f(bytes_300000, 300000, 150 * MiB) f(bytes_450000, 450000, 150 * MiB) \
	f(bytes_1200000, 1200000, 60 * MiB)

struct count { const char *name; unsigned long long allocs, alloc_bytes, frees, free_bytes; };

#define ENTRY(name, mean, total) { #name, 0, 0, 0, 0 },
enum { CROWD = 17, DEEP, ALL };
static struct count counts[ALL] = { FUNCTIONS(ENTRY) { "crowd", 0, 0, 0, 0 }, { "deep", 0, 0, 0, 0 } };

struct block { void *at; uint32_t size; uint8_t function; };

static struct block born(int function, void *at, size_t size)
{
	if (!at)
		abort();
	counts[function].allocs++;
	counts[function].alloc_bytes += size;
	return (struct block){ at, size, function };
}

#define FUNCTION(name, mean, total) \
	static NOINLINE struct block name(int function, size_t size) \
	{ struct block b = born(function, malloc(size), size); return b; }
FUNCTIONS(FUNCTION)
FUNCTION(crowd, 48, 0)

#define POINTER(name, mean, total) name,
static struct block (*const functions[])(int, size_t) = { FUNCTIONS(POINTER) };
#define MEAN(name, mean, total) mean,
static const uint32_t means[] = { FUNCTIONS(MEAN) };
#define NUMBER(name, mean, total) (total) / (mean),
static const uint32_t numbers[] = { FUNCTIONS(NUMBER) };

static uint64_t state;

static uint32_t random_below(uint32_t limit)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (state >> 33) % limit;
}

// Not from the allocator.
#define TIMES 3
static struct block all_blocks[TIMES][1 << 18];
static size_t count_of_blocks;

static NOINLINE void give_back(struct block *block)
{
	if (!block->at)
		return;
	counts[block->function].frees++;
	counts[block->function].free_bytes += block->size;
	free(block->at);
	block->at = NULL;
}

// The same blocks in the same order whenever it is called.
static NOINLINE void run(int time)
{
	struct block *blocks = all_blocks[time];
	state = 7;
	size_t n = 0;
	for (int function = 0; function < CROWD; function++)
		for (uint32_t i = 0; i < numbers[function]; i++)
			blocks[n++].function = function;
	for (size_t i = n - 1; i > 0; i--) {
		size_t other = random_below(i + 1);
		uint8_t function = blocks[i].function;
		blocks[i].function = blocks[other].function;
		blocks[other].function = function;
	}
	for (size_t i = 0; i < n; i++) {
		int function = blocks[i].function;
		size_t size = means[function] / 2 + random_below(means[function]);
		blocks[i] = functions[function](function, size);
	}
	for (size_t i = 0; i < n; i += 4)
		give_back(&blocks[i]);
	count_of_blocks = n;
}

static NOINLINE void first(void) { run(0); }
static NOINLINE void second(void) { run(1); }
static NOINLINE void third(void) { run(2); }

static void clear(void)
{
	for (int time = 0; time < TIMES; time++)
		for (size_t i = 0; i < count_of_blocks; i++)
			give_back(&all_blocks[time][i]);
	for (int i = 0; i < ALL; i++)
		counts[i] = (struct count){ counts[i].name, 0, 0, 0, 0 };
}

// Two ways at each step, and the last ones are different for each path.
#define STEP \
	if (depth == 0) \
		born(DEEP, malloc(100), 100); \
	else if (depth <= 16 && path >> (depth - 1) & 1) \
		left(path, depth - 1); \
	else \
		right(path, depth - 1); \
	__asm__ volatile("") /* no tail call */
static NOINLINE void right(unsigned path, int depth);
static NOINLINE void left(unsigned path, int depth) { STEP; }
static NOINLINE void right(unsigned path, int depth) { STEP; }

// Into a buffer of our own: stdio would allocate one.
static void tell(const char *asked)
{
	static char line[8192];
	size_t at = snprintf(line, sizeof line, "{\"asked\":\"%s\"", asked);
	for (int i = 0; i < ALL; i++)
		at += snprintf(line + at, sizeof line - at, ",\"%s\":[%llu,%llu,%llu,%llu]", counts[i].name,
			       counts[i].allocs, counts[i].alloc_bytes, counts[i].frees, counts[i].free_bytes);
	at += snprintf(line + at, sizeof line - at, "}\n");
	if (write(1, line, at) != (ssize_t)at)
		abort();
}

int main(void)
{
	tell("");
	static char line[256];
	for (size_t at = 0; read(0, line + at, 1) == 1;) {
		if (line[at] != '\n') {
			if (at < sizeof line - 2)
				at++;
			continue;
		}
		line[at] = 0;
		at = 0;
		unsigned long n = 0;
		int depth = 0;
		if (!strcmp(line, "run")) {
			first();
			second();
			third();
		} else if (!strcmp(line, "clear"))
			clear();
		else if (sscanf(line, "crowd %lu", &n) == 1)
			for (unsigned long i = 0; i < n; i++)
				crowd(CROWD, 48);
		else if (sscanf(line, "deep %lu %d", &n, &depth) == 2)
			for (unsigned path = 0; path < n; path++)
				right(path, depth);
		tell(line);
	}
	return 0;
}
