//go:build race

package broker

// raceOn: the stock server has data races of its own (between Close and a new connection, for one), which would fail our tests.
const raceOn = true
