module skerry.internal/bench

go 1.26.0

require (
	github.com/eclipse/paho.mqtt.golang v1.5.1
	github.com/gorilla/websocket v1.5.3
	github.com/hashicorp/yamux v0.1.2
	github.com/mochi-mqtt/server/v2 v2.7.9
	golang.org/x/sys v0.48.0
	skerry.internal/cluster-manager v0.0.0
	skerry.internal/messages v0.0.0
)

require (
	github.com/googollee/go-socket.io v1.7.0 // indirect
	github.com/rs/xid v1.4.0 // indirect
	go.etcd.io/bbolt v1.5.0 // indirect
	golang.org/x/net v0.59.0 // indirect
	golang.org/x/sync v0.23.0 // indirect
	gopkg.in/yaml.v3 v3.0.1 // indirect
	skerry.internal/broker v0.0.0 // indirect
	skerry.internal/netmanager v0.0.0 // indirect
)

replace skerry.internal/messages => ../../messages

replace skerry.internal/cluster-manager => ../../cluster-manager

replace skerry.internal/broker => ../../broker

replace skerry.internal/netmanager => ../../netmanager
