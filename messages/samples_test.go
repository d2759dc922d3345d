package messages

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"maps"
	"time"
)

func sampleTime(second int) Time { return At(time.Date(2026, 1, 2, 15, 4, second, 123e6, time.UTC)) }

func sampleKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte("0123456789abcdef0123456789abcdef"))
}

func stringID(s string) ClientID {
	var c ClientID
	if err := json.Unmarshal(Encode(s), &c); err != nil {
		panic(err)
	}
	return c
}

func sampleJob() Job {
	n := 2
	return Job{ID: stringID("camera-42"), Name: "camera", Replicas: &n, Mode: Service, LostAfter: Duration(2 * time.Minute),
		OnReturn:    KeepOriginal,
		Constraints: Constraints{Arch: []string{"amd64", "arm64"}, Labels: map[string]string{"site": "roof"}, Kind: Core},
		Update:      Update{Stable: Duration(5 * time.Second), Timeout: Duration(10 * time.Minute)},
		Spec:        sampleSpec()}
}

func sampleSpec() Spec {
	return Spec{Image: "registry.lan/camera:3.1", Technology: Docker, Entrypoint: []string{"/bin/camera"}, Args: []string{"--rate", "15"},
		Environment: map[string]string{"MODE": "edge"},
		Ports:       []Port{{Name: "rtsp", Host: 8554, Container: 8554, Protocol: "tcp"}, {Host: 5004, Container: 5004, Protocol: "udp"}},
		Volumes:     []Volume{{Source: "/srv/camera", Target: "/data"}, {Source: "cache", Target: "/cache", ReadOnly: true}},
		Devices:     []Device{{Host: "/dev/video0", Container: "/dev/video0", Permissions: "rwm"}},
		Resources:   Resources{CPUs: 1.5, MemoryMB: 256, GPUs: 1, PIDs: 200},
		Restart: Restart{Policy: RestartAlways, MaxAttempts: 10, Backoff: Duration(2 * time.Second),
			MaxBackoff: Duration(time.Minute)},
		Health: &Health{HTTP: &HTTPCheck{Port: 8554, Path: "/health"}, Interval: Duration(5 * time.Second), Timeout: Duration(time.Second),
			Retries: 3, StartPeriod: Duration(10 * time.Second)},
		Stop: Stop{Signal: "SIGINT", Grace: Duration(20 * time.Second)}, Priority: 10,
		Network: JobNetwork{Mode: Overlay, Policy: Closest, Allow: []JobName{"shop", "web"}}}
}

func tcpJob() Job {
	j := sampleJob()
	j.Health = &Health{TCP: &TCPCheck{Port: 8554}}
	return j
}

func execJob() Job {
	j := sampleJob()
	j.Health = &Health{Exec: []string{"/bin/camera", "--check"}}
	return j
}

func sampleStatus() InstanceStatus {
	code := 137
	return InstanceStatus{Instance: "web.0.2", Job: "web", Rev: 41, Generation: 2, Attempt: 1, Seq: 17, State: Running, Healthy: true,
		ExitCode: &code, OOM: true, Code: Exited, Reason: "killed by the kernel: the container used more than its 64 MiB",
		Address: "10.160.0.2", Network: Overlay, Names: []string{"web.skerry.internal", "0.web.skerry.internal"}, Ports: []Port{{Name: "http", Host: 8080, Container: 80, Protocol: "tcp"}}, StartedAt: sampleTime(5),
		ImageID: "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef", Workload: "4c01db0b339c", At: sampleTime(6)}
}

func preparingStatus() InstanceStatus {
	return InstanceStatus{Instance: "web.1.0", Job: "web", Rev: 40, Attempt: 2, Seq: 3, State: Preparing, NextAt: sampleTime(30),
		Progress: &Progress{DoneBytes: 10 << 20, TotalBytes: 70 << 20}, At: sampleTime(7)}
}

func sampleReports() []InstanceReport {
	return []InstanceReport{{Node: "board-1", Run: true, InstanceStatus: sampleStatus()},
		{Node: "board-2", Run: true, InstanceStatus: preparingStatus()}}
}

func samplePassed() []Passed {
	return []Passed{{Node: "board-1", Code: NoCapacity, Reason: "wants 256 MiB of memory, 100 MiB are free"},
		{Node: "board-2", Code: NoNodeMatches, Reason: "label site is cellar, not roof"}}
}

func sampleInfo() NodeInfo {
	key := sampleKey()
	public, _ := key.Public().(ed25519.PublicKey)
	return NodeInfo{Name: "board-1", Key: base64.StdEncoding.EncodeToString(public),
		Proof: Prove(key, Hello{Cluster: "lab", Nonce: "bm9uY2U="}), CSR: "-----BEGIN CERTIFICATE REQUEST-----\n…", Token: "join-token",
		Version: "0.1.0", Protocol: 1, Arch: "arm-7", OS: "Debian GNU/Linux 12", Kernel: "6.1.0", BootID: "b7a5d0c2", Clock: sampleTime(0),
		Epoch: 3, Addresses: []string{"192.168.1.20"}, CPU: CPUInfo{Model: "Cortex-A7", Cores: 4}, MemoryMB: 926, DiskMB: 14800,
		GPUs:         []GPUInfo{{Vendor: "nvidia", Model: "T4", MemoryMB: 15360, Driver: "550.54"}},
		Sensors:      []SensorInfo{{Kind: "w1", Path: "/sys/bus/w1/devices/28-0", Name: "roof"}},
		Technologies: []TechnologyInfo{{Name: Docker, Version: "20.10.24", Runtimes: []string{"runc", "nvidia"}}},
		Labels:       map[string]string{"site": "roof"},
		Overlay:      &OverlayInfo{PublicKey: sampleTunnelKey, Endpoints: []string{"192.168.1.20:51820"}, Blocks: []string{"10.160.0.0/26"}}}
}

func sampleTelemetry() Telemetry {
	use := sampleUse()
	return Telemetry{At: sampleTime(10), ClockSkewMS: -12, UptimeS: 86400, CPU: CPUUse{Percent: 12.5, PerCore: []float64{20, 5}},
		Load: [3]float64{0.4, 0.3, 0.2}, Memory: MemoryUse{TotalMB: 926, FreeMB: 500, UsedPercent: 46},
		Swap: MemoryUse{TotalMB: 100, FreeMB: 100}, Disk: DiskUse{TotalMB: 14800, FreeMB: 9000}, Network: NetworkUse{RxBPS: 1200, TxBPS: 800},
		Temperature: 51.5, GPUs: []GPUUse{{Index: 0, Percent: 30, MemoryUsedMB: 512, Temperature: 60, PowerW: 35.5}},
		Sensors: []SensorReading{{Name: "roof", Value: 21.25, Unit: "C"}}, Free: Free{CPUs: 3.5, MemoryMB: 670, GPUs: 1},
		Instances: []InstanceUse{{Instance: "web.0.2", CPUPercent: 3, MemoryMB: 20.5, RxBPS: 100, TxBPS: 50, Restarts: 1}},
		Overlay:   &use, FreeCores: 3.5, FreeMemory: 500}
}

func sampleNodeStatus() NodeStatus {
	i := sampleInfo()
	return NodeStatus{Node: i.Name, Kind: Core, State: NodeOnline, Since: sampleTime(1), Key: i.Key, Version: i.Version, Arch: i.Arch,
		OS: i.OS, Kernel: i.Kernel, Addresses: i.Addresses, Labels: i.Labels, Technologies: i.Technologies, CPU: i.CPU, MemoryMB: i.MemoryMB,
		DiskMB: i.DiskMB, GPUs: i.GPUs, Sensors: i.Sensors, Reserved: Resources{CPUs: 0.5, MemoryMB: 64, GPUs: 1, PIDs: 100},
		Instances: []InstanceID{"web.0.2"}, ClockSkewMS: 40, Epoch: 3, At: sampleTime(12), Overlay: &OverlayStatus{State: OverlayUp, Reason: "", Blocks: []string{"10.160.0.0/26"},
			PublicKey: sampleTunnelKey, Endpoints: []string{"192.168.1.20:51820"}, NAT: "cone", RelayOnly: true, Peers: 2}}
}

func sampleJobStatus() JobStatus {
	j := sampleJob()
	return JobStatus{Job: "web", ID: NumberID(7), State: JobDegraded, Reason: "1 of 3 copies waits for a node", Image: j.Image, Replicas: 3,
		Running: 1, Healthy: 1, Instances: sampleReports(),
		Waiting: []WaitingCopy{{Ordinal: 2, Code: NoCapacity, Reason: "no node has room", Nodes: samplePassed()}},
		Spec:    &j, Worker: []NodeID{"board-1", "board-2"}, Rev: 41, At: sampleTime(8)}
}

func sampleAssignment() Assignment {
	s := sampleSpec()
	return Assignment{Instance: "camera.0.0", Rev: 12, Epoch: 3, Run: true, Spec: &s}
}

// samples are the payloads of the golden files; commands come from testdata/client instead.
func samples() map[string]any {
	run, tcp, exec := sampleAssignment(), tcpJob().Spec, execJob().Spec
	tcpJob, execJob := tcpJob(), execJob()
	all := map[string]any{
		"hello.full":              Hello{HelloEdge: "please send your node info", Cluster: "lab", Protocol: 1, Nonce: "bm9uY2U="},
		"node-info.full":          sampleInfo(),
		"node-info.minimal":       NodeInfo{Name: "board-9", Key: sampleInfo().Key, Protocol: 1, Arch: "amd64"},
		"legacy-welcome.full":     LegacyWelcome{ID: "board-7", BrokerPort: "1883", Subnetwork: ""},
		"welcome.full":            sampleWelcome(),
		"refusal.full":            Refusal{Code: RefusedName, Message: "another key holds the name board-1", Hint: "run skerry node replace board-1"},
		"refusal.minimal":         Refusal{Code: RefusedToken, Message: "the token is not one of this cluster"},
		"result.accepted":         Result{RequestID: "c7f1", Command: Deploy, Job: "web", ID: NumberID(7), Phase: Accepted, Rev: 41, At: sampleTime(0)},
		"result.done":             Result{RequestID: "c7f1", Command: Deploy, Job: "web", Phase: Done, Instances: sampleReports(), Rev: 41, At: sampleTime(9)},
		"result.refused":          Result{RequestID: "c7f1", Command: Deploy, Job: "web", Phase: Refused, Code: NoCapacity, Message: "no node can take web", Nodes: samplePassed(), At: sampleTime(0)},
		"result.replace":          Result{RequestID: "n1", Command: Replace, Node: "board-1", Phase: Done, Message: "board-1 waits for the board that registers next with this name", Rev: 42, At: sampleTime(9)},
		"job-status.full":         sampleJobStatus(),
		"job-status.tcp":          JobStatus{Job: "camera", State: JobPending, Image: "registry.lan/camera:3.1", Replicas: 2, Spec: &tcpJob, Rev: 2, At: sampleTime(8)},
		"job-status.exec":         JobStatus{Job: "camera", State: JobRunning, Image: "registry.lan/camera:3.1", Replicas: 0, Spec: &execJob, Rev: 3, At: sampleTime(8)},
		"node-status.full":        sampleNodeStatus(),
		"node-status.expected":    NodeStatus{Node: "board-4", Kind: Core, State: NodeExpected, At: sampleTime(0)},
		"cluster-status.full":     ClusterStatus{Cluster: "lab", Version: "0.1.0", Protocol: 1, StartedAt: sampleTime(0), Nodes: map[string]int{"online": 2, "core": 1, "spare": 1}, Jobs: map[string]int{"running": 1}, Instances: map[string]int{"running": 2}, Rev: 41, At: sampleTime(9)},
		"cluster-status.empty":    ClusterStatus{Cluster: "lab", Version: "0.1.0", Protocol: 1, StartedAt: sampleTime(0), At: sampleTime(9)},
		"event.full":              Event{Kind: InstanceState, At: sampleTime(9), Node: "board-1", Job: "web", Instance: "web.0.2", State: Running, Message: "web.0.2 runs on board-1"},
		"event.minimal":           Event{Kind: NodeAwayEv, At: sampleTime(9), Message: "board-1 is away"},
		"presence.online":         Presence{Online: true, BootID: "b7a5d0c2", Epoch: 3, Rev: 41, Digest: Digest([]Assignment{run})},
		"presence.will":           Presence{},
		"assignment.run":          run,
		"assignment.stop":         Assignment{Instance: "web.0.1", Rev: 13, Epoch: 3},
		"assignment.tcp":          Assignment{Instance: "camera.1.0", Rev: 14, Epoch: 3, Run: true, Spec: &tcp},
		"assignment.exec":         Assignment{Instance: "camera.2.0", Rev: 15, Epoch: 3, Run: true, Spec: &exec},
		"sync.full":               Sync{Epoch: 3, Rev: 41, Assignments: []Assignment{run, {Instance: "web.0.1", Rev: 13, Epoch: 3}, {Instance: "camera.1.0", Rev: 14, Epoch: 3, Run: true, Spec: &tcp}, {Instance: "camera.2.0", Rev: 15, Epoch: 3, Run: true, Spec: &exec}}},
		"sync.empty":              Sync{Epoch: 4, Rev: 44},
		"inventory-request.full":  InventoryRequest{Epoch: 4},
		"inventory.full":          Inventory{N: 1, Last: true, Assignments: []Assignment{run, {Instance: "camera.1.0", Rev: 14, Epoch: 3, Run: true, Spec: &tcp}, {Instance: "camera.2.0", Rev: 15, Epoch: 3, Run: true, Spec: &exec}}},
		"inventory.empty":         Inventory{Last: true},
		"instance-status.running": sampleStatus(),
		"instance-status.pulling": preparingStatus(),
		"telemetry.full":          sampleTelemetry(),
		"telemetry.minimal":       Telemetry{At: sampleTime(10)},
		"logs-request.full":       LogsRequest{Instance: "web.0.2", Since: sampleTime(0), Tail: 100, Follow: true, RequestID: "log-2"},
		"log-chunk.first":         LogChunk{RequestID: "log-1", Instance: "web.0.2", N: 0, Stream: "stdout", Text: "ready <1>\n"},
		"log-chunk.last":          LogChunk{RequestID: "log-1", Instance: "web.0.2", N: 1, Last: true, Error: "the instance is gone"},
		"node-info.off":           NodeInfo{Name: "board-8", Key: sampleInfo().Key, Protocol: 1, Arch: "arm-7", Overlay: &OverlayInfo{Reason: "no /dev/net/tun: load the kernel's module tun"}},
		"node-status.off":         NodeStatus{Node: "board-8", Kind: Spare, State: NodeOnline, At: sampleTime(0), Overlay: &OverlayStatus{State: OverlayOff, Reason: "no /dev/net/tun: load the kernel's module tun"}},
	}
	maps.Copy(all, networkSamples())
	return all
}

func sampleWelcome() Welcome {
	return Welcome{ID: "board-1", Cluster: "lab", Kind: Spare, Brokers: []string{"tls://10.0.0.1:8883", "tcp://10.0.0.1:1883"}, BrokerPort: "8883",
		Username: "board-1", Password: "made at random", Certificate: "-----BEGIN CERTIFICATE-----\n…", CA: "-----BEGIN CERTIFICATE-----\n…",
		Lease: Duration(30 * time.Second), TelemetryInterval: Duration(5 * time.Second), Clock: sampleTime(0), Epoch: 3}
}
