//go:build pprof

// Links the heap profiler in. Without it the linker finds runtime.MemProfile unreachable and the
// program runs with sampling off, as many services do that have no profiling endpoint.

package main

import "runtime/pprof"

func init() {
	if pprof.Lookup("heap") == nil {
		panic("no heap profile")
	}
}
