// Objects allocates exactly as many objects as it is told, with the sampler taking every one: a
// known number of sampled allocations, for what happens when a tracer's maps are full. Nothing else
// is allocated while it does so; `mallocs`, the runtime's own count, is there to prove it.
//
// A line "N" on stdin allocates N objects and keeps them, a line "drop" lets go of all and collects.
package main

import (
	"os"
	"runtime"
	"strconv"
)

// serveProfiles is set by the file that the build tag `pprof` adds.
var serveProfiles func(address string) string

func init() { runtime.MemProfileRate = 1 }

// object is 64 bytes. The list needs no slice that would have to grow.
type object struct {
	next *object
	_    [56]byte
}

var (
	kept   *object
	total  int64
	memory runtime.MemStats
	input  [64]byte
	output [256]byte
)

//go:noinline
func allocate(count int64) {
	for i := int64(0); i < count; i++ {
		kept = &object{next: kept} // the one site
	}
	total += count
}

func mallocs() int64 {
	runtime.ReadMemStats(&memory)
	return int64(memory.Mallocs)
}

func report(count, mallocs int64) {
	line := append(output[:0], `{"allocated":`...)
	line = strconv.AppendInt(line, count, 10)
	line = append(line, `,"total":`...)
	line = strconv.AppendInt(line, total, 10)
	line = append(line, `,"bytes":`...)
	line = strconv.AppendInt(line, total*64, 10)
	line = append(line, `,"mallocs":`...)
	line = strconv.AppendInt(line, mallocs, 10)
	line = append(line, "}\n"...)
	os.Stdout.Write(line)
}

// readLine takes one short line from stdin; false at its end.
func readLine() ([]byte, bool) {
	for n := 0; n < len(input); n++ {
		if read, err := os.Stdin.Read(input[n : n+1]); read == 0 || err != nil {
			return nil, false
		}
		if input[n] == '\n' {
			return input[:n], true
		}
	}
	return nil, false
}

func main() {
	mallocs()
	os.Stdout.WriteString("{\"ready\":true,\"pid\":" + strconv.Itoa(os.Getpid()) + "}\n")
	for {
		line, ok := readLine()
		if !ok {
			return
		}
		if string(line) == "drop" {
			kept, total = nil, 0
			runtime.GC()
			runtime.GC()
			report(0, 0)
			continue
		}
		var count int64
		for _, digit := range line {
			if digit < '0' || digit > '9' {
				os.Stderr.WriteString("want a number or `drop`\n")
				os.Exit(2)
			}
			count = count*10 + int64(digit-'0')
		}
		before := mallocs()
		allocate(count)
		report(count, mallocs()-before)
	}
}
