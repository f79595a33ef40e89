// Churn allocates as fast as it can, more than ten million objects a second, and keeps few of them:
// what a tracer costs shows in its throughput.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// serveProfiles is set by the file that the build tag `pprof` adds.
var serveProfiles func(address string) string

// record is 48 bytes, with a pointer, as small objects mostly have.
type record struct {
	next   *record
	fields [5]int64
}

// node is 96 bytes and part of a heap that only stands there: a tree, or a list.
type node struct {
	children [4]*node
	rest     [64]byte
}

// heap is what `-heap` asks for.
var heap *node

// tree has so many nodes.
func tree(nodes int) *node {
	if nodes == 0 {
		return nil
	}
	top := &node{}
	for i := range top.children {
		top.children[i] = tree((nodes - 1 + i) / len(top.children))
	}
	return top
}

// list has so many nodes.
func list(nodes int) *node {
	top := &node{}
	for last := top; nodes > 1; nodes-- {
		last.children[0] = &node{}
		last = last.children[0]
	}
	return top
}

// counter stands alone on its cache lines.
type counter struct {
	objects atomic.Int64
	_       [120]byte
}

// kept is how many objects a worker holds on to: the live heap stays bounded.
const kept = 1 << 12

// work counts once a round. Between two allocations it does what a program does with an object, `spin`
// steps of it.
func work(count *counter, spin int) {
	ring := make([]*record, kept)
	for {
		for i := range ring {
			object := &record{} // the only allocation
			for step := 0; step < spin; step++ {
				object.fields[step%5] = object.fields[(step+1)%5]*31 + int64(step)
			}
			ring[i] = object
		}
		count.objects.Add(kept)
	}
}

// used is the processor time of the process so far.
func used() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func main() {
	workers := flag.Int("workers", runtime.GOMAXPROCS(0), "goroutines that allocate")
	spin := flag.Int("spin", 0, "steps of other work for each object")
	standing := flag.Int("heap", 0, "MiB of objects that are kept beside it, of 96 bytes each")
	isList := flag.Bool("list", false, "these are one list, not a tree")
	interval := flag.Duration("interval", time.Second, "how often the throughput is printed")
	rounds := flag.Int("rounds", 0, "stop after so many lines; 0: when stdin closes or a signal comes")
	flag.Parse()

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		var byte [1]byte
		for {
			if n, err := os.Stdin.Read(byte[:]); n == 0 || err != nil {
				stop <- syscall.SIGTERM
				return
			}
		}
	}()

	counters := make([]counter, *workers)
	for i := range counters {
		go work(&counters[i], *spin)
	}
	fmt.Printf("{\"ready\":true,\"pid\":%d}\n", os.Getpid())

	shape := tree
	if *isList {
		shape = list
	}
	if *standing > 0 {
		heap = shape(*standing << 20 / 96)
	}
	started := time.Now()
	last, lastTotal, lastUsed := started, int64(0), used()
	ticks := time.NewTicker(*interval)
	for round := 0; *rounds == 0 || round < *rounds; round++ {
		select {
		case <-stop:
			return
		case <-ticks.C:
		}
		now, total := time.Now(), int64(0)
		for i := range counters {
			total += counters[i].objects.Load()
		}
		rate := float64(total-lastTotal) / now.Sub(last).Seconds()
		cpu := used()
		ofCPU := float64(total-lastTotal) / (cpu - lastUsed).Seconds()
		fmt.Printf("{\"t_s\":%.3f,\"objects_per_cpu_s\":%.0f,\"objects_per_s\":%.0f}\n", now.Sub(started).Seconds(), ofCPU, rate)
		last, lastTotal, lastUsed = now, total, cpu
	}
}
