//go:build pprof

// Links the heap profiler in. Without it the linker finds runtime.MemProfile unreachable and the
// program runs with sampling off, as many services do that have no profiling endpoint.

package main

import (
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"runtime/pprof"
)

func init() {
	if pprof.Lookup("heap") == nil {
		panic("no heap profile")
	}
	serveProfiles = func(address string) string {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			os.Stderr.WriteString("failed to serve profiles: " + err.Error() + "\n")
			os.Exit(2)
		}
		go http.Serve(listener, nil)
		return listener.Addr().String()
	}
}
