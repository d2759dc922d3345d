//go:build !linux || !cgo || !(amd64 || arm64)

package gpu

import "log/slog"

// openNVIDIA says that this build has no NVIDIA library: it needs cgo, and NVIDIA makes it for amd64 and arm64 only.
func openNVIDIA(*slog.Logger) library { return nil }
