package messages

import (
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"
)

// Validate reports all that is wrong with a job that is to be deployed.
func (j Job) Validate() error {
	var p problems
	p.add(CheckName("job.name", string(j.Name)))
	if j.Image == "" {
		p.add(errors.New("job.image: missing"))
	}
	p.add(j.validateCount(), oneOf("job.mode", j.Mode, Service, Batch),
		oneOf("job.on_return", j.OnReturn, KeepNewest, KeepOriginal),
		j.Constraints.validate(), checkSpan("job.lost_after", j.LostAfter, 24*365*time.Hour),
		checkSpan("job.update.stable", j.Update.Stable, time.Hour), checkSpan("job.update.timeout", j.Update.Timeout, 24*time.Hour),
		j.Spec.Validate())
	return p.err()
}

func (j Job) validateCount() error {
	if n := j.CopyCount(); n < 0 || n > MaxReplicas {
		return fmt.Errorf("job.replicas: %d, want 0 to %d", n, MaxReplicas)
	}
	return nil
}

// Validate reports all that is wrong with a spec.
func (s Spec) Validate() error {
	var errs []error
	if strings.ContainsFunc(s.Image, func(r rune) bool { return r <= ' ' || r == 0x7f }) || len(s.Image) > 512 {
		errs = append(errs, fmt.Errorf("job.image %q: want an image reference of at most 512 characters without spaces", clip(s.Image)))
	}
	if s.Technology != "" {
		errs = append(errs, CheckName("job.technology", string(s.Technology)))
	}
	if s.Priority < -1000 || s.Priority > 1000 {
		errs = append(errs, fmt.Errorf("job.priority: %d, want -1000 to 1000", s.Priority))
	}
	errs = append(errs, checkTexts("job.args", s.Args), checkTexts("job.entrypoint", s.Entrypoint), s.validateEnvironment(),
		s.validatePorts(), s.validateMounts(), s.Resources.validate(), s.Restart.validate(), s.Stop.validate(),
		s.Network.validate(&s))
	if s.Health != nil {
		errs = append(errs, s.Health.validate())
	}
	return errors.Join(errs...)
}

func checkTexts(field string, texts []string) error {
	if len(texts) > maxListed {
		return fmt.Errorf("%s: %d entries, at most %d", field, len(texts), maxListed)
	}
	for i, t := range texts {
		if len(t) > maxText || strings.ContainsRune(t, 0) {
			return fmt.Errorf("%s[%d]: over %d bytes or holds a NUL", field, i, maxText)
		}
	}
	return nil
}

func (s Spec) validateEnvironment() error {
	if len(s.Environment) > maxListed {
		return fmt.Errorf("job.environment: %d entries, at most %d", len(s.Environment), maxListed)
	}
	for k, v := range s.Environment {
		if k == "" || strings.ContainsAny(k, "=\x00") || len(k) > 256 {
			return fmt.Errorf("job.environment %q: not a name for a variable", clip(k))
		}
		if len(v) > maxText || strings.ContainsRune(v, 0) {
			return fmt.Errorf("job.environment %q: value over %d bytes or holds a NUL", clip(k), maxText)
		}
	}
	return nil
}

func (s Spec) validatePorts() error {
	if len(s.Ports) > maxListed {
		return fmt.Errorf("job.ports: %d entries, at most %d", len(s.Ports), maxListed)
	}
	var wrong problems
	taken := map[Port]bool{} // by host, and by name
	for i, p := range s.Ports {
		if !p.valid() {
			wrong.add(fmt.Errorf("job.ports[%d]: want container 1 to 65535, host 0 to 65535, protocol tcp or udp, name 1 to 15 of a-z, 0-9 and single hyphens inside, with a letter", i))
		}
		setDefault(&p.Protocol, "tcp")
		key := Port{Host: p.Host, Protocol: p.Protocol}
		if p.Host != 0 && taken[key] {
			wrong.add(fmt.Errorf("job.ports[%d]: host port %d is listed twice", i, p.Host))
		}
		taken[key] = true
		name := Port{Name: p.Name, Protocol: p.Protocol}
		if p.Name != "" && taken[name] {
			wrong.add(fmt.Errorf("job.ports[%d]: name %s is listed twice", i, clip(p.Name)))
		}
		taken[name] = true
	}
	return wrong.err()
}

// serviceName reports whether a port can be asked for by that name, as RFC 6335 has it.
func serviceName(s string) bool {
	letter := func(r rune) bool { return r >= 'a' && r <= 'z' }
	wrong := func(r rune) bool { return !letter(r) && r != '-' && (r < '0' || r > '9') }
	return len(s) <= 15 && strings.ContainsFunc(s, letter) && !strings.ContainsFunc(s, wrong) && s[0] != '-' && s[len(s)-1] != '-' && !strings.Contains(s, "--")
}

func (p Port) valid() bool {
	known := p.Protocol == "" || p.Protocol == "tcp" || p.Protocol == "udp"
	return known && (p.Name == "" || serviceName(p.Name)) && p.Container >= 1 && p.Container <= 65535 && p.Host >= 0 && p.Host <= 65535
}

func (s Spec) validateMounts() error {
	if len(s.Volumes) > maxListed || len(s.Devices) > maxListed {
		return fmt.Errorf("job.volumes, job.devices: at most %d entries each", maxListed)
	}
	var p problems
	for i, v := range s.Volumes {
		if !path.IsAbs(v.Target) || strings.ContainsAny(v.Target, "\x00:") {
			p.add(fmt.Errorf("job.volumes[%d].target %q: want an absolute path without a colon", i, clip(v.Target)))
		}
		if v.Source == "" || strings.ContainsAny(v.Source, "\x00:") || (!path.IsAbs(v.Source) && !volumeName(v.Source)) {
			p.add(fmt.Errorf("job.volumes[%d].source %q: want an absolute path or the name of a volume", i, clip(v.Source)))
		}
	}
	for i, d := range s.Devices {
		if !path.IsAbs(d.Host) || (d.Container != "" && !path.IsAbs(d.Container)) || strings.ContainsRune(d.Host+d.Container, 0) {
			p.add(fmt.Errorf("job.devices[%d]: want absolute paths", i))
		}
		if strings.Trim(d.Permissions, "rwm") != "" || len(d.Permissions) > 3 {
			p.add(fmt.Errorf("job.devices[%d].permissions %q: want letters of rwm", i, clip(d.Permissions)))
		}
	}
	return p.err()
}

func volumeName(s string) bool {
	for i, r := range s {
		letter := (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') || (r >= '0' && r <= '9')
		if !letter && (i == 0 || (r != '-' && r != '_' && r != '.')) {
			return false
		}
	}
	return len(s) > 1 && len(s) <= 128
}

func (r Resources) validate() error {
	if math.IsNaN(r.CPUs) || r.CPUs < 0 || r.CPUs > 4096 {
		return fmt.Errorf("job.resources.cpus: %v, want 0 to 4096", r.CPUs)
	}
	if r.CPUs > 0 && r.CPUs < minCPUs {
		return fmt.Errorf("job.resources.cpus: %v, want 0 (no limit) or at least %v, the least that the kernel can give", r.CPUs, minCPUs)
	}
	if r.MemoryMB < 0 || r.MemoryMB > maxMemoryMB || r.GPUs < 0 || r.GPUs > 1024 || r.PIDs < 0 || r.PIDs > 1<<22 {
		return errors.New("job.resources: memory_mb, gpus and pids want numbers from 0 up to what a board can have")
	}
	if r.MemoryMB > 0 && r.MemoryMB < minMemoryMB {
		return fmt.Errorf("job.resources.memory_mb: %d, want 0 (no limit) or at least %d, the least that a container starts with",
			r.MemoryMB, minMemoryMB)
	}
	return nil
}

func (r Restart) validate() error {
	if r.MaxAttempts < 0 || r.MaxAttempts > maxNumber {
		return fmt.Errorf("job.restart.max_attempts: %d, want 0 or more", r.MaxAttempts)
	}
	return errors.Join(oneOf("job.restart.policy", r.Policy, RestartAlways, RestartOnFailure, RestartNever),
		checkSpan("job.restart.backoff", r.Backoff, time.Hour), checkLeast("job.restart.backoff", r.Backoff, minBackoff), checkSpan("job.restart.max_backoff", r.MaxBackoff, 24*time.Hour))
}

func (s Stop) validate() error {
	if strings.ContainsFunc(s.Signal, func(r rune) bool {
		return (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '+' && r != '-'
	}) || len(s.Signal) > 16 {
		return fmt.Errorf("job.stop.signal %q: want a name such as SIGTERM or a number", clip(s.Signal))
	}
	return checkSpan("job.stop.grace", s.Grace, time.Hour)
}

func (h Health) validate() error {
	set := 0
	var errs []error
	if h.HTTP != nil {
		set++
		errs = append(errs, checkPort("job.health.http.port", h.HTTP.Port))
		if h.HTTP.Path != "" && (h.HTTP.Path[0] != '/' || strings.ContainsAny(h.HTTP.Path, " \r\n\x00")) {
			errs = append(errs, fmt.Errorf("job.health.http.path %q: must begin with / and hold no spaces", clip(h.HTTP.Path)))
		}
	}
	if h.TCP != nil {
		set++
		errs = append(errs, checkPort("job.health.tcp.port", h.TCP.Port))
	}
	if len(h.Exec) > 0 {
		set++
		errs = append(errs, checkTexts("job.health.exec", h.Exec))
	}
	if set != 1 {
		errs = append(errs, errors.New("job.health: want exactly one of http, tcp and exec"))
	}
	if h.Retries < 0 || h.Retries > 1000 {
		errs = append(errs, fmt.Errorf("job.health.retries: %d, want 0 (the default) to 1000", h.Retries))
	}
	errs = append(errs, checkLeast("job.health.interval", h.Interval, minCheck), checkLeast("job.health.timeout", h.Timeout, minCheck))
	return errors.Join(append(errs, checkSpan("job.health.interval", h.Interval, 24*time.Hour),
		checkSpan("job.health.timeout", h.Timeout, time.Hour), checkSpan("job.health.start_period", h.StartPeriod, 24*time.Hour))...)
}

func (c Constraints) validate() error {
	if len(c.Arch) > maxListed || len(c.Labels) > maxListed {
		return fmt.Errorf("job.constraints: arch and labels take at most %d entries each", maxListed)
	}
	var p problems
	p.add(oneOf("job.constraints.kind", c.Kind, "any", Core, Spare))
	for _, a := range c.Arch {
		p.add(CheckName("job.constraints.arch", a))
	}
	for k, v := range c.Labels {
		p.add(checkLabel("job.constraints.labels", k, v))
	}
	return p.err()
}

// checkLabel bounds one label of a node, or one that a job asks for.
func checkLabel(field, key, value string) error {
	if err := CheckName(field, key); err != nil {
		return err
	}
	if len(value) > maxLabel {
		return fmt.Errorf("%s %q: value over %d bytes", field, key, maxLabel)
	}
	return nil
}

func checkPort(field string, n int) error {
	if n < 1 || n > 65535 {
		return fmt.Errorf("%s: %d, want 1 to 65535", field, n)
	}
	return nil
}

// checkSpan bounds a duration that may be absent.
func checkSpan(field string, d Duration, most time.Duration) error {
	if d < 0 || d.Std() > most {
		return fmt.Errorf("%s: %s, want at most %s", field, d, most)
	}
	return nil
}

// checkLeast bounds from below a duration that may be absent.
func checkLeast(field string, d Duration, least time.Duration) error {
	if d > 0 && d.Std() < least {
		return fmt.Errorf("%s: %s, want at least %s", field, d, least)
	}
	return nil
}

// oneOf checks a word that may be absent.
func oneOf[T ~string](field string, got T, allowed ...T) error {
	var zero T
	if got == zero || slices.Contains(allowed, got) {
		return nil
	}
	words := make([]string, len(allowed))
	for i, a := range allowed {
		words[i] = string(a)
	}
	return fmt.Errorf("%s %q: want one of %s", field, clip(string(got)), strings.Join(words, ", "))
}
