//go:build race

package sim

// defaultSeeds is less under the race detector, which makes a story ten times as long.
const defaultSeeds = 40
