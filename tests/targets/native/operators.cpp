// Every form of operator new and operator delete, each from a function of its own, and the truth about
// it. A call in eight asks for more than there is: its exception is caught by the caller's caller.
//
//   operators [--threads N] [--never-refused]
//
// The line "run N" on stdin lets each thread do N rounds; it is answered, when that is done, by a line of JSON.
// Blocks are given back by whichever thread comes by. `--never-refused` is for an allocator that ends the program
// rather than throw.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <pthread.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum form { NEW, ARRAY, NOTHROW, ARRAY_NOTHROW, ALIGNED, ARRAY_ALIGNED, ALIGNED_NOTHROW, REFUSED, FORMS };

static const char *const names[FORMS] = {
	"by_new", "by_array", "by_nothrow", "by_array_nothrow", "by_aligned", "by_array_aligned",
	"by_aligned_nothrow", "refused",
};

enum { MOST_THREADS = 8, PLACES = 64 };

static std::atomic<unsigned long long> counts[FORMS][4];
static uint64_t rounds, threads = 1;
static bool never_refused;
static const auto alignment = std::align_val_t{256};
static void *volatile seen;

extern "C" {
NOINLINE void *by_new(size_t size) { void *at = ::operator new(size); seen = at; return at; }
NOINLINE void *by_array(size_t size) { void *at = ::operator new[](size); seen = at; return at; }
NOINLINE void *by_nothrow(size_t size) { void *at = ::operator new(size, std::nothrow); seen = at; return at; }
NOINLINE void *by_array_nothrow(size_t size) { void *at = ::operator new[](size, std::nothrow); seen = at; return at; }
NOINLINE void *by_aligned(size_t size) { void *at = ::operator new(size, alignment); seen = at; return at; }
NOINLINE void *by_array_aligned(size_t size) { void *at = ::operator new[](size, alignment); seen = at; return at; }
NOINLINE void *by_aligned_nothrow(size_t size) { void *at = ::operator new(size, alignment, std::nothrow); seen = at; return at; }
NOINLINE void *refused(size_t size) { void *at = ::operator new(size); seen = at; return at; }
}

static NOINLINE bool is_refused(size_t size)
{
	try {
		::operator delete(refused(size));
	} catch (const std::bad_alloc &) {
		return true;
	}
	return false;
}

static void give_back(enum form form, void *at, size_t size)
{
	switch (form) {
	case NEW: size % 2 ? ::operator delete(at) : ::operator delete(at, size); break;
	case ARRAY: size % 2 ? ::operator delete[](at) : ::operator delete[](at, size); break;
	case NOTHROW: ::operator delete(at, std::nothrow); break;
	case ARRAY_NOTHROW: ::operator delete[](at, std::nothrow); break;
	case ALIGNED: size % 2 ? ::operator delete(at, alignment) : ::operator delete(at, size, alignment); break;
	case ARRAY_ALIGNED: ::operator delete[](at, size, alignment); break;
	default: ::operator delete(at, alignment, std::nothrow);
	}
}

static void round_of(uint64_t round)
{
	static struct { std::mutex lock; enum form form; void *at; size_t size; } ring[PLACES];
	auto &place = ring[round * 5 % PLACES];
	std::lock_guard<std::mutex> guard(place.lock);
	if (place.at) {
		counts[place.form][2]++;
		counts[place.form][3] += place.size;
		give_back(place.form, place.at, place.size);
		place.at = nullptr;
	}
	auto form = static_cast<enum form>(round % FORMS);
	size_t size = 16 + round * 3 % 1000;
	if (form >= ALIGNED) // The C++ library rounds it up so itself.
		size = (size + 255) & ~size_t{255};
	void *at = nullptr;
	switch (form) {
	case NEW: at = by_new(size); break;
	case ARRAY: at = by_array(size); break;
	case NOTHROW: at = by_nothrow(size); break;
	case ARRAY_NOTHROW: at = by_array_nothrow(size); break;
	case ALIGNED: at = by_aligned(size); break;
	case ARRAY_ALIGNED: at = by_array_aligned(size); break;
	case ALIGNED_NOTHROW: at = by_aligned_nothrow(size); break;
	default:
		if (!never_refused && !is_refused(PTRDIFF_MAX - 65536))
			abort();
		return;
	}
	counts[form][0]++;
	counts[form][1] += size;
	memset(at, 1, 16);
	place.form = form;
	place.at = at;
	place.size = size;
}

static void *work(void *first)
{
	for (uint64_t round = 0; round < rounds; round++)
		round_of(reinterpret_cast<uintptr_t>(first) + round);
	return nullptr;
}

static void run()
{
	static pthread_t made[MOST_THREADS];
	for (uint64_t n = 1; n < threads; n++)
		if (pthread_create(&made[n], nullptr, work, reinterpret_cast<void *>(n * 13)))
			abort();
	work(nullptr);
	for (uint64_t n = 1; n < threads; n++)
		pthread_join(made[n], nullptr);
}

static void tell(const char *asked)
{
	static char line[4096];
	size_t at = snprintf(line, sizeof line, "{\"asked\":\"%s\"", asked);
	for (int i = 0; i < FORMS; i++)
		at += snprintf(line + at, sizeof line - at, ",\"%s\":[%llu,%llu,%llu,%llu]", names[i],
			       counts[i][0].load(), counts[i][1].load(), counts[i][2].load(), counts[i][3].load());
	at += snprintf(line + at, sizeof line - at, "}\n");
	if (write(1, line, at) != static_cast<ssize_t>(at))
		abort();
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		never_refused |= !strcmp(argv[i], "--never-refused");
		if (!strcmp(argv[i], "--threads") && i + 1 < argc)
			threads = strtoull(argv[i + 1], nullptr, 10);
	}
	if (threads < 1 || threads > MOST_THREADS)
		return 1;
	// What the first exception takes for itself.
	if (!never_refused && !is_refused(PTRDIFF_MAX - 65536))
		return 1;
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
		if (!strncmp(line, "run ", 4)) {
			rounds = strtoull(line + 4, nullptr, 10);
			run();
		}
		tell(line);
	}
	return 0;
}
