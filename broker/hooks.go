package broker

import (
	"errors"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// hooks is where the library calls us. All of it runs on the goroutine that reads the client's connection, except
// OnPacketEncode.
type hooks struct {
	mqtt.HookBase
	b *Broker
}

// ID names the hook in the library's logs.
func (h *hooks) ID() string { return "broker" }

// Provides lists what the library shall call.
func (h *hooks) Provides(b byte) bool {
	switch b {
	case mqtt.OnPacketRead, mqtt.OnPacketEncode, mqtt.OnPacketProcessed, mqtt.OnConnect, mqtt.OnConnectAuthenticate,
		mqtt.OnSessionEstablished, mqtt.OnACLCheck, mqtt.OnSubscribe, mqtt.OnSubscribed:
		return true
	}
	return false
}

// sessionOf returns our side of a client.
func sessionOf(cl *mqtt.Client) *session { return cl.Net.Conn.(*wire).session }

// handled is what the library gets in place of a packet that we dealt with: an acknowledgement of nothing.
func handled(pk packets.Packet) packets.Packet {
	return packets.Packet{
		ProtocolVersion: pk.ProtocolVersion, FixedHeader: packets.FixedHeader{Type: packets.Puback},
	}
}

// OnPacketRead sees each packet once it is decoded. PUBLISH and all acknowledgements end here.
func (h *hooks) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	s := sessionOf(cl)
	var err error
	switch pk.FixedHeader.Type {
	case packets.Publish:
		err = s.publish(pk)
	case packets.Puback, packets.Pubcomp:
		s.box.acked(pk.PacketID)
		s.sendOwed()
	case packets.Pubrec:
		if pk.ReasonCode >= packets.ErrUnspecifiedError.Code {
			s.box.acked(pk.PacketID)
		} else {
			s.box.received(pk.PacketID)
		}
		s.sendOwed()
	case packets.Pubrel:
		err = s.release(pk.PacketID)
	case packets.Connect:
		return s.keepWill(pk), nil
	case packets.Disconnect:
		return s.sayFarewell(pk), nil
	case packets.Connack, packets.Suback, packets.Unsuback, packets.Pingresp:
		err = s.violate(packets.ErrProtocolViolation)
	default:
		return pk, nil
	}
	if err != nil {
		return pk, packets.ErrRejectPacket // any other error would be passed over
	}
	return handled(pk), nil
}

// keepWill takes the will out of the CONNECT: the library sends wills unchecked, late, and not at all when it closes the
// connection itself between two packets.
func (s *session) keepWill(pk packets.Packet) packets.Packet {
	if s.box != nil {
		return pk // a second CONNECT; the library ends the connection
	}
	s.window = pk.Properties.ReceiveMaximum
	c := &pk.Connect
	if c.WillFlag && c.WillQos <= 2 {
		s.will = &message{topic: c.WillTopic, payload: c.WillPayload, qos: c.WillQos, retain: c.WillRetain}
		s.will.setProps(c.WillProperties)
		s.willDelay = time.Duration(c.WillProperties.WillDelayInterval) * time.Second
		c.WillFlag, c.WillRetain = false, false
	}
	return pk
}

// sayFarewell notes a DISCONNECT. Only the reason 0 drops the will. The library's decoder passes over a reason that is not
// followed by properties; it is the last byte that came, since nothing may follow a DISCONNECT.
func (s *session) sayFarewell(pk packets.Packet) packets.Packet {
	reason := pk.ReasonCode
	if pk.ProtocolVersion == 5 && pk.FixedHeader.Remaining == 1 {
		reason = s.wire.last
	}
	s.farewell = reason == 0
	return pk
}

// OnConnect decides about a client whose CONNECT is well formed.
func (h *hooks) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	s := sessionOf(cl)
	s.core = cl
	err := s.admit(cl, pk)
	if err == nil {
		return nil
	}
	h.b.counters.rejected.Add(1)
	if unsaid, ok := h.b.turnedAway.due(time.Now()); ok {
		h.b.log.Warn("client not admitted", "client_id", clip(cl.ID), "addr", cl.Net.Remote, "unsaid", unsaid, "err", err)
	}
	code := packets.ErrNotAuthorized
	if r, ok := errors.AsType[refusal](err); ok {
		code = r.code
	}
	_ = h.b.core.SendConnack(cl, code, false, nil)
	return err
}

func (s *session) admit(cl *mqtt.Client, pk packets.Packet) error {
	if cl.ID == mqtt.InlineClientId || len(cl.ID) > maxClientID || validName(cl.ID) != nil {
		return refusal{packets.ErrClientIdentifierNotValid, "client id is reserved, too long or holds what no id may"}
	}
	client, err := s.b.cfg.Authenticate(Login{
		ClientID: cl.ID, Username: string(pk.Connect.Username), Password: pk.Connect.Password,
		Remote: s.wire.RemoteAddr(), Protocol: pk.ProtocolVersion, Listener: s.listener, TLS: s.tls,
	})
	if err != nil {
		return err
	}
	client.ID, client.Remote, client.Protocol = cl.ID, cl.Net.Remote, pk.ProtocolVersion
	if client.Username == "" {
		client.Username = string(pk.Connect.Username)
	}
	s.client = client
	if err := s.checkWill(); err != nil {
		return err
	}
	s.limits(cl, pk)
	s.box = newOutbox(s.b.cfg.WriteBuffer, &s.b.counters)
	err = s.b.claim(s, pk.Connect.Clean)
	if err != nil {
		s.box = nil
		return refusal{packets.ErrServerBusy, err.Error()}
	}
	return nil
}

// checkWill refuses a client at once that could not have its will sent.
func (s *session) checkWill() error {
	if s.will == nil {
		return nil
	}
	if err := validTopic(s.will.topic); err != nil {
		return refusal{packets.ErrTopicNameInvalid, err.Error()}
	}
	s.will.origin = s.client.ID
	if s.will.topic[0] == '$' || !s.b.cfg.Allow(s.client, Publish, s.will.topic) {
		return refusal{packets.ErrNotAuthorized, "not authorised to publish the will's topic"}
	}
	return nil
}

// limits sets what the library would compute wrongly or leave open.
func (s *session) limits(cl *mqtt.Client, pk packets.Packet) {
	longest := uint16(min(s.b.cfg.KeepAliveMax/time.Second, 65535))
	if pk.ProtocolVersion == 5 && (cl.State.Keepalive == 0 || cl.State.Keepalive > longest) {
		cl.State.Keepalive, cl.State.ServerKeepalive = longest, true
	}
	s.wire.keepAlive = time.Duration(cl.State.Keepalive) * time.Second
	if s.b.cfg.SessionExpiry == 0 {
		cl.Properties.Clean = true
	}
}

// OnConnectAuthenticate has been decided in OnConnect, where a proper CONNACK can be sent.
func (h *hooks) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

// OnSessionEstablished comes after the CONNACK.
func (h *hooks) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	s := sessionOf(cl)
	s.admitted = true
	s.uncount()
	if h.b.cfg.OnConnect != nil {
		h.b.cfg.OnConnect(s.client)
	}
	p := cl.Properties.Props
	window := 65535
	if s.window > 0 {
		window = int(s.window)
	}
	s.box.attach(s.wire, s.client.Protocol == 5, window, int(p.MaximumPacketSize), s.expiry() > 0)
	s.sendOwed() // where the session goes on
}

// OnPacketEncode completes the CONNACK: limits for MQTT 5, codes that 3.1.1 knows.
func (h *hooks) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if pk.FixedHeader.Type != packets.Connack {
		return pk
	}
	if cl.Properties.ProtocolVersion == 5 {
		pk.Properties.MaximumPacketSize = uint32(h.b.cfg.MaxPacket)
		if s := sessionOf(cl); s != nil && pk.ReasonCode == packets.CodeSuccess.Code {
			s.v5.Store(true) // before the client can know that it is admitted, and be kicked
		}
		return pk
	}
	switch pk.ReasonCode {
	case packets.ErrClientIdentifierNotValid.Code, packets.ErrUnspecifiedError.Code:
		pk.ReasonCode = packets.Err3ClientIdentifierNotValid.Code
	case packets.ErrServerBusy.Code, packets.ErrQuotaExceeded.Code:
		pk.ReasonCode = packets.Err3ServerUnavailable.Code
	}
	if pk.ReasonCode >= packets.ErrUnspecifiedError.Code {
		pk.ReasonCode = packets.Err3NotAuthorized.Code
	}
	return pk
}

// OnSubscribe notes what is asked for. It takes retained messages away from the library, whose queue for them drops, and gives
// each filter that is not one a form that the library refuses.
func (h *hooks) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	s := sessionOf(cl)
	s.asked = s.asked[:0]
	filters := append(packets.Subscriptions(nil), pk.Filters...)
	held := cl.State.Subscriptions.Len()
	for i, sub := range filters {
		r := request{sub: sub}
		_, r.existed = cl.State.Subscriptions.Get(sub.Filter)
		inner, err := validFilter(sub.Filter)
		if held++; err != nil {
			filters[i].Filter = ""
		} else if held > h.b.cfg.MaxSubscriptions && !r.existed {
			r.full = true
		}
		r.inner = inner
		filters[i].RetainHandling = 2
		s.asked = append(s.asked, r)
	}
	pk.Filters = filters
	return pk
}

// OnACLCheck is called for each valid filter of a SUBSCRIBE, in its order.
func (h *hooks) OnACLCheck(cl *mqtt.Client, filter string, _ bool) bool {
	s := sessionOf(cl)
	for _, r := range s.asked {
		if r.sub.Filter == filter {
			return !r.full && h.b.cfg.Allow(s.client, Subscribe, r.inner)
		}
	}
	return false
}

// OnSubscribed comes before the SUBACK and may still change its codes.
func (h *hooks) OnSubscribed(cl *mqtt.Client, _ packets.Packet, codes []byte) {
	s := sessionOf(cl)
	for i := range min(len(codes), len(s.asked)) {
		s.asked[i].granted = codes[i] <= 2
		if s.asked[i].full && s.client.Protocol == 5 {
			codes[i] = packets.ErrQuotaExceeded.Code
		}
	}
}

// OnPacketProcessed comes after the SUBACK, when the retained messages follow, and after the UNSUBACK, when no more may.
func (h *hooks) OnPacketProcessed(cl *mqtt.Client, pk packets.Packet, err error) {
	if err != nil {
		return
	}
	s := sessionOf(cl)
	switch pk.FixedHeader.Type {
	case packets.Unsubscribe:
		s.forgive()
	case packets.Subscribe:
		for _, r := range s.asked {
			shared := r.inner != r.sub.Filter
			unwanted := r.sub.RetainHandling == 2 || r.sub.RetainHandling == 1 && r.existed
			if r.granted && !shared && !unwanted {
				s.owe(r.sub.Filter)
			}
		}
		s.asked = nil
		s.sendOwed()
	}
}
