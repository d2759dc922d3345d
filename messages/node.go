package messages

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"time"
)

// The Socket.IO events of a registration, in the order in which they cross the wire.
const (
	HelloEvent    = "sc1"     // manager → node: Hello
	NodeInfoEvent = "cs1"     // node → manager: NodeInfo
	WelcomeEvent  = "sc2"     // manager → node: Welcome
	RefusedEvent  = "refused" // manager → node: Refusal, then the manager disconnects
)

// Namespace is the Socket.IO namespace of a registration.
const Namespace = "/init"

// Hello opens a registration.
type Hello struct {
	HelloEdge string `json:"hello-edge"`
	Cluster   string `json:"cluster"`
	Protocol  int    `json:"protocol"`
	Nonce     string `json:"nonce"` // to be signed for NodeInfo.Proof
}

// Validate reports whether the Hello can be answered.
func (h *Hello) Validate() error {
	if h.Protocol > Protocol {
		return fmt.Errorf("the manager speaks protocol %d, this program %d: update it", h.Protocol, Protocol)
	}
	return CheckName("cluster", h.Cluster)
}

// NodeInfo is how a node introduces itself.
type NodeInfo struct {
	Name         NodeID            `json:"name"`
	Key          string            `json:"key"`             // the node's public key (Ed25519, standard base64), its identity
	Proof        string            `json:"proof,omitempty"` // signature of ProofText, standard base64
	CSR          string            `json:"csr,omitempty"`
	Token        string            `json:"token,omitempty"`
	Version      string            `json:"version,omitempty"`
	Protocol     int               `json:"protocol"`
	Arch         string            `json:"arch"` // amd64, arm64, arm-7
	OS           string            `json:"os,omitempty"`
	Kernel       string            `json:"kernel,omitempty"`
	BootID       string            `json:"boot_id,omitempty"`
	Clock        Time              `json:"clock,omitzero"`
	Epoch        uint64            `json:"epoch,omitempty"` // of the Assignments that the node holds
	Addresses    []string          `json:"addresses,omitempty"`
	CPU          CPUInfo           `json:"cpu"`
	MemoryMB     int               `json:"memory_mb"`
	DiskMB       int               `json:"disk_mb,omitempty"`
	GPUs         []GPUInfo         `json:"gpus,omitempty"`
	Sensors      []SensorInfo      `json:"sensors,omitempty"`
	Technologies []TechnologyInfo  `json:"technologies"`
	Labels       map[string]string `json:"labels,omitempty"`
	Overlay      *OverlayInfo      `json:"overlay,omitempty"`
}

// CPUInfo describes a node's processors.
type CPUInfo struct {
	Model string `json:"model,omitempty"`
	Cores int    `json:"cores"`
}

// GPUInfo describes one graphics processor of a node.
type GPUInfo struct {
	Vendor   string `json:"vendor,omitempty"`
	Model    string `json:"model,omitempty"`
	MemoryMB int    `json:"memory_mb,omitempty"`
	Driver   string `json:"driver,omitempty"`
}

// SensorInfo describes something attached to a board that can be read or handed to a container.
type SensorInfo struct {
	Kind string `json:"kind"` // hwmon, thermal, w1, iio, usb, serial, video
	Path string `json:"path"`
	Name string `json:"name,omitempty"`
}

// TechnologyInfo says that a node runs jobs of one technology.
type TechnologyInfo struct {
	Name    Technology `json:"name"`
	Version string     `json:"version,omitempty"`
	// Runtimes lists what the technology offers beyond its default, such as "nvidia".
	Runtimes []string `json:"runtimes,omitempty"`
}

// Validate reports all that is wrong with the introduction.
func (n *NodeInfo) Validate() error {
	var p problems
	p.add(CheckName("name", string(n.Name)))
	if n.Key == "" || len(n.Key) > 1024 {
		p.add(errors.New("key: want the node's public key, at most 1024 characters"))
	}
	if n.Protocol < 0 || n.Protocol > Protocol {
		p.add(fmt.Errorf("protocol: the node speaks %d, this manager %d: update the manager first", n.Protocol, Protocol))
	}
	if n.Arch != "" {
		p.add(CheckName("arch", n.Arch))
	}
	if n.CPU.Cores < 0 || n.CPU.Cores > 1<<16 || n.MemoryMB < 0 || n.MemoryMB > maxMemoryMB || n.DiskMB < 0 {
		p.add(errors.New("cpu.cores, memory_mb, disk_mb: want numbers from 0 up to what a board can have"))
	}
	if len(n.Technologies) > 32 || len(n.GPUs) > 1024 || len(n.Sensors) > 4096 || len(n.Addresses) > maxListed || len(n.Labels) > maxListed {
		p.add(errors.New("technologies, gpus, sensors, addresses or labels: too many"))
	}
	p.add(n.checkTexts())
	p.add(n.Overlay.validate())
	for k, v := range n.Labels {
		p.add(checkLabel("labels", k, v))
	}
	for _, t := range n.Technologies {
		p.add(CheckName("technologies", string(t.Name)))
	}
	return p.err()
}

// Bounds of the texts of a NodeInfo, in bytes: who registers is not known yet, and what it says is kept and retained.
const (
	maxInfoText  = 512       // of one
	maxInfoTexts = 128 << 10 // of all together: 512 sensors have 60 KiB
	maxSecret    = 4096      // csr, token and proof, each
)

// checkTexts reports whether the texts that have no form of their own are of a length that a board can mean.
func (n *NodeInfo) checkTexts() error {
	texts := append([]string{n.Version, n.OS, n.Kernel, n.BootID, n.CPU.Model}, n.Addresses...)
	for _, g := range n.GPUs {
		texts = append(texts, g.Vendor, g.Model, g.Driver)
	}
	for _, s := range n.Sensors {
		texts = append(texts, s.Kind, s.Path, s.Name)
	}
	for _, t := range n.Technologies {
		texts = append(append(texts, t.Version), t.Runtimes...)
	}
	sum, longest := 0, 0
	for _, t := range texts {
		sum, longest = sum+len(t), max(longest, len(t))
	}
	if longest > maxInfoText || sum > maxInfoTexts {
		return fmt.Errorf("node info: a text has %d bytes and all have %d, at most %d and %d", longest, sum, maxInfoText, maxInfoTexts)
	}
	if len(n.CSR) > maxSecret || len(n.Token) > maxSecret || len(n.Proof) > maxSecret {
		return fmt.Errorf("csr, token, proof: at most %d bytes each", maxSecret)
	}
	return nil
}

// ProofText is what a node signs with its private key to show that the public key is its own.
func ProofText(cluster, nonce string) []byte {
	return []byte("skerry node of " + cluster + "\n" + nonce)
}

// Prove signs a Hello for NodeInfo.Proof.
func Prove(key ed25519.PrivateKey, h Hello) string {
	return base64.StdEncoding.EncodeToString(ed25519.Sign(key, ProofText(h.Cluster, h.Nonce)))
}

// Proved reports whether Proof shows that the sender of n holds the private key of n.Key. A key in another spelling than the
// one that base64 writes is not proved: the key is compared as text, and one key must not count as several nodes.
func (n *NodeInfo) Proved(cluster, nonce string) bool {
	key, errKey := base64.StdEncoding.DecodeString(n.Key)
	proof, errProof := base64.StdEncoding.DecodeString(n.Proof)
	if errKey != nil || errProof != nil || len(key) != ed25519.PublicKeySize || nonce == "" {
		return false
	}
	if base64.StdEncoding.EncodeToString(key) != n.Key {
		return false
	}
	return ed25519.Verify(key, ProofText(cluster, nonce), proof)
}

// The kinds of node.
const (
	Core  = "core"  // named in the manager's configuration and expected always
	Spare = "spare" // joined later
)

// Welcome admits a node.
type Welcome struct {
	ID                NodeID   `json:"id"`
	Cluster           string   `json:"cluster"`
	Kind              string   `json:"kind"`
	Brokers           []string `json:"brokers"`          // URLs in order of preference; a host of "" means the one that was dialled
	BrokerPort        string   `json:"MQTT_BROKER_PORT"` // EdgeIO's field
	Username          string   `json:"username"`
	Password          string   `json:"password"`
	Certificate       string   `json:"certificate,omitempty"`
	CA                string   `json:"ca,omitempty"`
	Lease             Duration `json:"lease"` // lost_after of this cluster
	TelemetryInterval Duration `json:"telemetry_interval"`
	Clock             Time     `json:"clock"`
	Epoch             uint64   `json:"epoch"`
}

// Validate reports all that is wrong with the welcome.
func (w *Welcome) Validate() error {
	errs := []error{CheckName("id", string(w.ID)), CheckName("cluster", w.Cluster)}
	if len(w.Brokers) == 0 {
		errs = append(errs, errors.New("brokers: none"))
	}
	return errors.Join(append(errs, checkSpan("lease", w.Lease, 24*365*time.Hour), checkSpan("telemetry_interval", w.TelemetryInterval, 24*time.Hour))...)
}

// LegacyWelcome answers an EdgeIO engine, which knows neither keys nor clusters.
type LegacyWelcome struct {
	ID         NodeID `json:"id"`
	BrokerPort string `json:"MQTT_BROKER_PORT"`
	Subnetwork string `json:"SUBNETWORK"`
}

// Validate reports whether the welcome can be used.
func (w *LegacyWelcome) Validate() error { return CheckName("id", string(w.ID)) }

// RefusalCode names the reason of a refused registration.
type RefusalCode string

// The reasons of a refused registration.
const (
	RefusedPayload  RefusalCode = "bad_payload"
	RefusedName     RefusalCode = "name_taken"
	RefusedToken    RefusalCode = "bad_token"
	RefusedProof    RefusalCode = "bad_proof"
	RefusedLegacy   RefusalCode = "legacy_node"
	RefusedProtocol RefusalCode = "bad_protocol"
	RefusedTimeout  RefusalCode = "timeout"
	RefusedBusy     RefusalCode = "unavailable"
)

// Refusal says why a node was not admitted and what to do about it.
type Refusal struct {
	Code    RefusalCode `json:"code"`
	Message string      `json:"message"`
	Hint    string      `json:"hint,omitempty"`
}

// Error makes a Refusal usable as an error.
func (r *Refusal) Error() string {
	if r.Hint == "" {
		return fmt.Sprintf("%s (%s)", r.Message, r.Code)
	}
	return fmt.Sprintf("%s (%s): %s", r.Message, r.Code, r.Hint)
}

// Validate reports whether the refusal can be understood.
func (r *Refusal) Validate() error {
	if r.Code == "" {
		return errors.New("code: missing")
	}
	return nil
}

// Presence says whether a node is connected. The one with Online false is the node's last will.
type Presence struct {
	Online bool   `json:"online"`
	BootID string `json:"boot_id,omitempty"`
	Epoch  uint64 `json:"epoch,omitempty"`
	Rev    uint64 `json:"rev,omitempty"`    // the highest of the node's Assignments
	Digest string `json:"digest,omitempty"` // of the node's Assignments, see Digest
}

// Validate reports whether the presence can be understood.
func (p *Presence) Validate() error {
	if len(p.Digest) > 64 || len(p.BootID) > 128 {
		return errors.New("digest or boot_id: too long")
	}
	return nil
}

// Telemetry is what a node measures. It never decides whether the node is alive. FreeCores and FreeMemory repeat others under
// EdgeIO's names; cpu and memory have EdgeIO's names too, but are objects.
type Telemetry struct {
	At          Time            `json:"at"`
	ClockSkewMS int64           `json:"clock_skew_ms"`
	UptimeS     int64           `json:"uptime_s"`
	CPU         CPUUse          `json:"cpu"`
	Load        [3]float64      `json:"load"`
	Memory      MemoryUse       `json:"memory"`
	Swap        MemoryUse       `json:"swap,omitzero"`
	Disk        DiskUse         `json:"disk"`
	Network     NetworkUse      `json:"network"`
	Temperature float64         `json:"temperature_c,omitempty"`
	GPUs        []GPUUse        `json:"gpus,omitempty"`
	Sensors     []SensorReading `json:"sensors,omitempty"`
	Free        Free            `json:"free"`
	Instances   []InstanceUse   `json:"instances,omitempty"`
	Overlay     *OverlayUse     `json:"overlay,omitempty"`
	FreeCores   float64         `json:"free_cores"`        // EdgeIO's: cores not in use
	FreeMemory  int64           `json:"memory_free_in_MB"` // EdgeIO's
}

// CPUUse is the use of the processors since the last telemetry, in percent of all of them.
type CPUUse struct {
	Percent float64   `json:"percent"`
	PerCore []float64 `json:"per_core,omitempty"`
}

// MemoryUse is the use of memory in MiB.
type MemoryUse struct {
	TotalMB     int64   `json:"total_mb"`
	FreeMB      int64   `json:"free_mb"` // available without swapping
	UsedPercent float64 `json:"used_percent"`
}

// DiskUse is the use of the disk that holds the workloads, in MiB.
type DiskUse struct {
	TotalMB int64 `json:"total_mb"`
	FreeMB  int64 `json:"free_mb"`
}

// NetworkUse is the traffic of the node's real interfaces in bits per second.
type NetworkUse struct {
	RxBPS float64 `json:"rx_bps"`
	TxBPS float64 `json:"tx_bps"`
}

// GPUUse is the use of one graphics processor.
type GPUUse struct {
	Index        int     `json:"index"`
	Percent      float64 `json:"percent"`
	MemoryUsedMB int64   `json:"memory_used_mb"`
	Temperature  float64 `json:"temperature_c,omitempty"`
	PowerW       float64 `json:"power_w,omitempty"`
}

// SensorReading is the value of one attached sensor.
type SensorReading struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"` // C, V, A, W, rpm, %, Pa, lx, …
}

// Free is what a node has left beside what its Assignments reserve.
type Free struct {
	CPUs     float64 `json:"cpus"`
	MemoryMB int64   `json:"memory_mb"`
	GPUs     int     `json:"gpus"`
}

// InstanceUse is what one instance uses.
type InstanceUse struct {
	Instance   InstanceID `json:"instance"`
	CPUPercent float64    `json:"cpu_percent"` // of one core
	MemoryMB   float64    `json:"memory_mb"`
	RxBPS      float64    `json:"rx_bps"`
	TxBPS      float64    `json:"tx_bps"`
	Restarts   int        `json:"restarts"`
}

// Validate reports whether the telemetry is within what a board can say.
func (t *Telemetry) Validate() error {
	if len(t.CPU.PerCore) > 1<<12 || len(t.GPUs) > 1024 || len(t.Sensors) > 4096 || len(t.Instances) > 1<<14 {
		return errors.New("per_core, gpus, sensors or instances: too many")
	}
	if math.IsNaN(t.CPU.Percent) || t.CPU.Percent < 0 {
		return errors.New("cpu.percent: want 0 or more")
	}
	return t.Overlay.validate()
}
