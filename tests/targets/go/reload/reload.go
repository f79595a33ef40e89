// Reload is a service that reads a table of its database anew at each sub-task, into a fresh
// sync.Map. The frequency control of that sub-task keeps the map while it waits on a channel that
// nobody closes, so every copy of the table stays for good.
package main

import (
	"flag"
	"sync"
	"sync/atomic"
)

// Row is one record: 512 bytes, a size class of its own.
type Row struct {
	ID       any // primary key, boxed once by the database driver
	Name     string
	Limit    int64
	Window   int64
	Features [58]float64
}

const rowBytes = 512

// rowCache is the copy of the table that one sub-task works with.
type rowCache struct{ m sync.Map }

// Store keeps a row. Its value is boxed here: one object of 512 bytes, the leak.
func (c *rowCache) Store(r Row) { c.m.Store(r.ID, r) }

// database is the table: its keys are boxed when the service starts, its rows made up as they are read.
type database struct{ keys []any }

func openDatabase(rows int) *database {
	db := &database{}
	for i := 0; i < rows; i++ {
		db.keys = append(db.keys, int64(1000+i))
	}
	return db
}

// each reads the first `rows` rows.
func (db *database) each(rows int, visit func(Row)) {
	for i, key := range db.keys[:rows] {
		visit(Row{ID: key, Name: "account", Limit: int64(i), Window: 60})
	}
}

// reloader starts the sub-tasks.
type reloader struct {
	db     *database
	done   chan struct{}
	stored atomic.Int64
}

// loadTable copies the table.
func (r *reloader) loadTable(rows int) *rowCache {
	cache := &rowCache{}
	r.db.each(rows, func(row Row) {
		cache.Store(row)
		r.stored.Add(1)
	})
	return cache
}

// subTask loads the table and leaves it to the frequency control.
func (r *reloader) subTask(rows int) {
	cache := r.loadTable(rows)
	go r.frequencyControl(cache)
}

// frequencyControl would account for the sub-task when it is done; nobody ever says that it is.
func (r *reloader) frequencyControl(cache *rowCache) {
	<-r.done // waits here for ever: nothing closes `done`
	cache.m.Range(func(_, _ any) bool { return false })
}

func (r *reloader) leak(bytes int64) int64 {
	rows := int64(len(r.db.keys))
	var leaked int64
	for ; leaked+rows*rowBytes <= bytes; leaked += rows * rowBytes {
		r.subTask(int(rows))
	}
	return leaked
}

func (r *reloader) leaked() (bytes, objects int64) {
	rows := r.stored.Load()
	return rows * rowBytes, rows
}

func main() {
	rows := flag.Int("rows", 256, "rows of the table, 512 bytes each")
	s := newService(8<<20, 80<<20)
	flag.Parse()
	r := &reloader{db: openDatabase(*rows), done: make(chan struct{})}
	s.run(r)
}
