package register

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	"skerry.internal/messages"
)

// introduction is a cs1, decoded.
type introduction struct {
	info   messages.NodeInfo
	legacy bool // of an EdgeIO engine
	text   bool // came as a string that holds the JSON
}

// sketch is what tells one kind of cs1 from the other before it is decoded.
type sketch struct {
	Key      json.RawMessage `json:"key"`
	Host     json.RawMessage `json:"host"`
	Protocol json.RawMessage `json:"protocol"`
}

// decodeIntroduction returns an error that is a *messages.Refusal.
func decodeIntroduction(p packet, allowLegacy bool) (introduction, error) {
	_, args, err := p.event()
	if err != nil || len(args) == 0 {
		return introduction{}, badPayload(errors.New("cs1 without an argument"))
	}
	in, payload := introduction{}, []byte(args[0])
	if bytes.HasPrefix(payload, []byte(`"`)) {
		var text string
		if err := json.Unmarshal(payload, &text); err != nil {
			return introduction{}, badPayload(err)
		}
		in.text, payload = true, []byte(text)
	}
	var sk sketch
	if len(payload) <= messages.MaxPayload { // Decode says what is wrong with others, and with what does not parse
		_ = json.Unmarshal(payload, &sk)
	}
	if present(sk.Host) && !present(sk.Key) {
		return in.decodeLegacy(payload, allowLegacy)
	}
	if err := newerProtocol(sk); err != nil {
		return introduction{}, err
	}
	if err := messages.Decode(payload, &in.info); err != nil {
		return introduction{}, badPayload(err)
	}
	return in, nil
}

func present(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

// newerProtocol refuses what Decode would refuse too, with a code by which a node can tell what to do.
func newerProtocol(sk sketch) error {
	var protocol int
	if err := json.Unmarshal(sk.Protocol, &protocol); err != nil || protocol <= messages.Protocol {
		return nil
	}
	return &messages.Refusal{Code: messages.RefusedProtocol, Message: "the node speaks a newer protocol than this manager", Hint: "update the manager first"}
}

func badPayload(err error) *messages.Refusal {
	const most = 512 // an error may repeat what it was given
	text := strings.ToValidUTF8(err.Error(), "?")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return &messages.Refusal{Code: messages.RefusedPayload, Message: text, Hint: "see the NodeInfo in the message contract"}
}

// legacyDump is what we read of the dump of an EdgeIO engine: host is its name, or an object that holds it.
type legacyDump struct {
	Host json.RawMessage `json:"host"`
}

type legacyHost struct {
	Hostname      string `json:"hostname"`
	OS            string `json:"os"`
	KernelVersion string `json:"kernelVersion"`
	KernelArch    string `json:"kernelArch"`
}

func (in introduction) decodeLegacy(payload []byte, allowed bool) (introduction, error) {
	if !allowed {
		return introduction{}, &messages.Refusal{
			Code: messages.RefusedLegacy, Message: "EdgeIO's engines are not admitted here: they have no key that identifies them",
			Hint: "install this project's node engine, or start the manager with --allow-legacy-nodes",
		}
	}
	var host legacyHost
	var dump legacyDump
	if err := json.Unmarshal(payload, &dump); err != nil {
		return introduction{}, badPayload(err)
	}
	if json.Unmarshal(dump.Host, &host.Hostname) != nil && json.Unmarshal(dump.Host, &host) != nil {
		return introduction{}, badPayload(errors.New("host: want a name, or an object with hostname"))
	}
	in.legacy = true
	in.info = messages.NodeInfo{Name: messages.NodeID(label(host.Hostname)), OS: clip(host.OS), Kernel: clip(host.KernelVersion), Arch: arch(host.KernelArch)}
	if err := messages.CheckName("host", string(in.info.Name)); err != nil {
		return introduction{}, badPayload(err)
	}
	return in, nil
}

// label makes a host name one that a node may have.
func label(hostname string) string {
	name, _, _ := strings.Cut(strings.ToLower(hostname), ".")
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, name)
	return strings.Trim(name[:min(len(name), 63)], "-")
}

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 128)], "") }

// arch translates what uname says; an unknown one is kept, placement passes over it.
func arch(machine string) string {
	switch machine {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "armv7l":
		return "arm-7"
	}
	return clip(machine)
}

// welcome renders sc2 in the form in which cs1 came.
func (in introduction) welcome(w messages.Welcome) []byte {
	payload := messages.Encode(w)
	if in.legacy {
		payload = messages.Encode(messages.LegacyWelcome{ID: w.ID, BrokerPort: w.BrokerPort})
	}
	if in.text {
		return quoted(payload)
	}
	return payload
}
