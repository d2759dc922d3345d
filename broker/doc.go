// Package broker is an MQTT broker, 3.1.1 and 5, that lives inside another program's process.
//
// It is for a program that wants to speak MQTT with the world and to decide itself who may connect, who may say and hear what,
// and when a message counts as received: a publish is acknowledged only after the owner's OnPublish has returned nil.
//
// The package knows nothing of the messages it carries, stores nothing on disk, and must not: block on a slow client, trust a
// byte it has read, call back into the owner while it holds a lock (Allow for deliveries of retained messages is the one
// exception, see Config), or show the library it stands on in its exported names.
//
// The library (mochi-mqtt) decodes packets, answers CONNECT, SUBSCRIBE, UNSUBSCRIBE and PINGREQ, and keeps the index of
// subscriptions. Listening, connections, wills, take-over, PUBLISH and its acknowledgements, delivery, flow control, retained
// messages and expiry are this package's own; README.md says why for each.
//
// The life of a connection:
//
//	accepted -> CONNECT read -> authenticated -> claimed -> admitted -> ended -> forgotten
//	                                               |                      |
//	          (an older one of the same id has ended, its will is sent)  parked (only with SessionExpiry)
package broker
