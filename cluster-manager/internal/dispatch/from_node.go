package dispatch

import (
	"context"
	"fmt"

	"skerry.internal/messages"
)

// FromNode takes what a node has published over the connection link. An error is about the payload, which is dropped: a node that goes on
// sending such is not to be told by a broken connection.
func (l *Loop) FromNode(ctx context.Context, t messages.Topic, link any, payload []byte) error {
	switch t.Kind {
	case messages.PresenceTopic:
		return decoded(payload, func(p *messages.Presence) { l.Presence(ctx, t.Node, link, *p) })
	case messages.NodeJobTopic:
		return decoded(payload, func(s *messages.InstanceStatus) { l.Status(ctx, t.Node, *s) })
	case messages.NetEndpointsTopic:
		return decoded(payload, func(e *messages.Endpoints) { l.Endpoints(ctx, t.Node, *e) })
	case messages.NetInterestTopic:
		return decoded(payload, func(i *messages.Interest) { l.Interest(ctx, t.Node, link, *i) })
	case messages.InventoryTopic:
		piece, err := messages.DecodeInventory(payload)
		if err == nil {
			l.Inventory(ctx, t.Node, piece)
		}
		return err
	default:
		return fmt.Errorf("topic %s: not one that a node tells its manager something by", t)
	}
}

// decoded hands over a payload that makes sense.
func decoded[T any, P interface {
	*T
	Validate() error
}](payload []byte, take func(P)) error {
	v := P(new(T))
	err := messages.Decode(payload, v)
	if err == nil {
		take(v)
	}
	return err
}
