//go:build linux

package link

// OldKernel returns the configuration as it is for a kernel without nf_tables.
func OldKernel(c Config) Config {
	c.oldKernel = map[bool]bool{true: true, false: true}
	return c
}

// OldIPv6 returns the configuration as it is for a kernel whose nf_tables knows IPv4 alone.
func OldIPv6(c Config) Config {
	c.oldKernel = map[bool]bool{false: true}
	return c
}
