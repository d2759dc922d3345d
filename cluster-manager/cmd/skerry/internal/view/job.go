package view

import (
	"fmt"
	"strconv"
	"strings"

	"skerry.internal/messages"
)

// Jobs lists jobs.
func (s Style) Jobs(jobs []messages.JobStatus) string {
	rows := make([][]string, 0, len(jobs))
	for _, j := range jobs {
		rows = append(rows, []string{string(j.Job), s.state(string(j.State)), fmt.Sprintf("%d/%d", j.Running, j.Replicas), strconv.Itoa(j.Healthy), j.Image,
			orDash(nodesOf(j)), s.Age(j.At)})
	}
	return s.grid([]string{"name", "state", "running", "healthy", "image", "nodes", "changed"}, rows)
}

// nodesOf lists the nodes of a job, each once.
func nodesOf(j messages.JobStatus) string {
	var names []string
	seen := map[messages.NodeID]bool{}
	for _, i := range j.Instances {
		if !seen[i.Node] {
			seen[i.Node] = true
			names = append(names, string(i.Node))
		}
	}
	return strings.Join(names, " ")
}

// Job shows all that is known of a job.
func (s Style) Job(j messages.JobStatus) string {
	var worker []string
	for _, w := range j.Worker {
		worker = append(worker, string(w))
	}
	out := s.facts([][2]string{{"job", string(j.Job)}, {"id", j.ID.String()}, {"state", s.state(string(j.State))}, {"reason", j.Reason}, {"image", j.Image},
		{"copies", fmt.Sprintf("%d wanted, %d running, %d healthy", j.Replicas, j.Running, j.Healthy)}, {"only on", strings.Join(worker, " ")},
		{"rev", strconv.FormatUint(j.Rev, 10)}, {"as of", s.when(j.At)}})
	if len(j.Instances) > 0 {
		var rows [][]string
		for _, i := range j.Instances {
			rows = append(rows, s.instanceRow(i))
		}
		out += "\n" + s.grid([]string{"instance", "node", "state", "healthy", "attempt", "address", "ports", "started", "reason"}, rows)
	}
	if len(j.Waiting) > 0 {
		var rows [][]string
		for _, w := range j.Waiting {
			rows = append(rows, []string{strconv.Itoa(w.Ordinal), string(w.Code), w.Reason})
			for _, p := range w.Nodes {
				rows = append(rows, []string{"", string(p.Code), string(p.Node) + ": " + p.Reason})
			}
		}
		out += "\n" + s.grid([]string{"waiting copy", "code", "reason"}, rows)
	}
	return out
}

func (s Style) instanceRow(i messages.InstanceReport) []string {
	return []string{string(i.Instance), string(i.Node), s.state(stateWord(i)), yesNo(i), strconv.Itoa(i.Attempt), orDash(i.Address), orDash(ports(i.Ports)),
		s.Age(i.StartedAt), orDash(s.why(i))}
}

// stateWord is the state of an instance, as far as it is known.
func stateWord(i messages.InstanceReport) string {
	if i.State == "" {
		return string(messages.Pending)
	}
	return string(i.State)
}

func yesNo(i messages.InstanceReport) string {
	switch {
	case i.State != messages.Running:
		return "-"
	case i.Healthy:
		return "yes"
	default:
		return "no"
	}
}

func ports(list []messages.Port) string {
	var parts []string
	for _, p := range list {
		protocol := p.Protocol
		if protocol == "" {
			protocol = "tcp"
		}
		parts = append(parts, joined("=", p.Name, fmt.Sprintf("%d:%d/%s", p.Host, p.Container, protocol)))
	}
	return strings.Join(parts, " ")
}

// why says what is known beside the state.
func (s Style) why(i messages.InstanceReport) string {
	parts := []string{i.Reason}
	if !i.Run {
		parts = append([]string{"to be stopped"}, parts...)
	}
	if p := i.Progress; p != nil && i.State == messages.Preparing {
		parts = append(parts, "pulled "+pulled(*p))
	}
	if i.ExitCode != nil && !strings.Contains(i.Reason, fmt.Sprintf("code %d", *i.ExitCode)) {
		parts = append(parts, fmt.Sprintf("exit code %d", *i.ExitCode))
	}
	if !i.NextAt.IsZero() && i.NextAt.After(s.Now) && !strings.Contains(i.Reason, "next attempt") {
		parts = append(parts, "next attempt in "+span(i.NextAt.Sub(s.Now)))
	}
	return joined("; ", parts...)
}

// Refusal shows per node why it was passed over.
func (s Style) Refusal(nodes []messages.Passed) string {
	rows := make([][]string, 0, len(nodes))
	for _, p := range nodes {
		rows = append(rows, []string{string(p.Node), string(p.Code), p.Reason})
	}
	return s.grid([]string{"node", "code", "reason"}, rows)
}
