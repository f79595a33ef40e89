// The part of a service that is written in C, where cgo is on: a codec with a bounded number of frames
// in flight. It runs beside the service's own work, allocates with malloc, and leaks nothing.

package main

/*
#include <stdlib.h>
#include <string.h>

enum { IN_FLIGHT = 64, FRAME = 16 << 10 };
static char *in_flight[IN_FLIGHT];
static unsigned long next;

static unsigned long encode(void)
{
	char **frame = &in_flight[next++ % IN_FLIGHT];
	free(*frame);
	*frame = malloc(FRAME);
	if (!*frame)
		abort();
	memset(*frame, (int)next, FRAME);
	return next;
}
*/
import "C"

func init() { nativeWork = func() { C.encode() } }
