//go:build linux

// Package labtest builds whole networks for tests and measurements: hosts in network namespaces, on each a node that is a process of its own with
// a Network in it, so that it can be frozen and killed as the real one, and namespaces that play containers. A program that uses it calls Child
// first thing in main or TestMain.
package labtest
