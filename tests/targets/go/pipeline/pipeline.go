// Pipeline is a log search: batches of lines are filtered side by side, each in a goroutine that
// sends its matches on an unbuffered channel. The collector returns once a page is full, the filters
// are started all the same, and every one of them waits for ever to send.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"sync/atomic"
)

// matchBytes is the capacity of one filter's result: a size class of its own.
const matchBytes = 4096

// batch is a piece of the log.
type batch struct{ lines [][]byte }

// search is one query over the log.
type search struct {
	needle    []byte
	matches   chan []byte
	allocated atomic.Int64
	collected atomic.Int64
}

// collect reads until the page is full. Nobody reads `matches` after that.
func (s *search) collect(page int) {
	for i := 0; i < page; i++ {
		<-s.matches
		s.collected.Add(1)
	}
}

// filter looks through one batch.
func (s *search) filter(b *batch) {
	matching := make([]byte, 0, matchBytes) // 4096 bytes, the leak
	s.allocated.Add(1)
	for _, line := range b.lines {
		if bytes.Contains(line, s.needle) && len(matching)+len(line) < cap(matching) {
			matching = append(matching, line...)
		}
	}
	s.matches <- matching // blocks here for ever: the collector has stopped reading
}

// tail hands out batches of the log, the same few over and over.
type tail struct {
	batches []*batch
	next    int
}

func openTail() *tail {
	t := &tail{}
	for i := 0; i < 16; i++ {
		b := &batch{}
		for j := 0; j < 32; j++ {
			level := "info"
			if j%8 == 0 {
				level = "error"
			}
			b.lines = append(b.lines, []byte(fmt.Sprintf("level=%s shard=%d request=%d took=3ms\n", level, i, j)))
		}
		t.batches = append(t.batches, b)
	}
	return t
}

func (t *tail) batch() *batch {
	t.next++
	return t.batches[t.next%len(t.batches)]
}

// pipeline feeds the search.
type pipeline struct {
	log    *tail
	search *search
}

func (p *pipeline) leak(bytes int64) int64 {
	var leaked int64
	for ; leaked+matchBytes <= bytes; leaked += matchBytes {
		go p.search.filter(p.log.batch())
	}
	return leaked
}

func (p *pipeline) leaked() (bytes, objects int64) {
	// `collected` first: it never overtakes `allocated`.
	collected := p.search.collected.Load()
	objects = p.search.allocated.Load() - collected
	return objects * matchBytes, objects
}

func main() {
	page := flag.Int("page", 100, "matches that the collector reads before it stops")
	s := newService(4<<20, 32<<20)
	flag.Parse()
	p := &pipeline{
		log:    openTail(),
		search: &search{needle: []byte("level=error"), matches: make(chan []byte)},
	}
	go p.search.collect(*page)
	s.run(p)
}
