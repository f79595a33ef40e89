// Every form of operator new and operator delete, each from a function of its own, and the truth about
// it. A call in eight asks for more than there is: its exception is caught by the caller's caller.
//
// The line "run N" on stdin lets it do N rounds; it is answered, when that is done, by a line of JSON.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum form { NEW, ARRAY, NOTHROW, ARRAY_NOTHROW, ALIGNED, ARRAY_ALIGNED, ALIGNED_NOTHROW, REFUSED, FORMS };

static const char *const names[FORMS] = {
	"by_new", "by_array", "by_nothrow", "by_array_nothrow", "by_aligned", "by_array_aligned",
	"by_aligned_nothrow", "refused",
};

static unsigned long long counts[FORMS][4];
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
	static struct { enum form form; void *at; size_t size; } ring[64];
	auto &place = ring[round * 5 % 64];
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
		if (!is_refused(PTRDIFF_MAX - 65536))
			abort();
		return;
	}
	counts[form][0]++;
	counts[form][1] += size;
	memset(at, 1, 16);
	place = { form, at, size };
}

static void tell(const char *asked)
{
	static char line[4096];
	size_t at = snprintf(line, sizeof line, "{\"asked\":\"%s\"", asked);
	for (int i = 0; i < FORMS; i++)
		at += snprintf(line + at, sizeof line - at, ",\"%s\":[%llu,%llu,%llu,%llu]", names[i],
			       counts[i][0], counts[i][1], counts[i][2], counts[i][3]);
	at += snprintf(line + at, sizeof line - at, "}\n");
	if (write(1, line, at) != static_cast<ssize_t>(at))
		abort();
}

int main()
{
	// What the first exception takes for itself.
	if (!is_refused(PTRDIFF_MAX - 65536))
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
			uint64_t n = strtoull(line + 4, nullptr, 10);
			for (uint64_t round = 0; round < n; round++)
				round_of(round);
		}
		tell(line);
	}
	return 0;
}
