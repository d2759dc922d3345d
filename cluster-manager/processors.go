package main

import "runtime"

// spareProcessors is how many goroutines may run at once beside one on each processor.
const spareProcessors = 2

// runAhead lets more goroutines run at once than there are processors. Go asks the network for news only where one more could run, or every 10 ms:
// where a large payload is decoded on one of two processors while garbage is collected on the other, everybody else would wait as long. With some
// to spare, a thread waits in the kernel for news at all times, and the kernel has it run when there is some. GOMAXPROCS goes before.
func runAhead(getenv func(string) string) {
	if getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + spareProcessors)
	}
}
