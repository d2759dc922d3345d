"""Registers any number of nodes with an unmodified python-socketio and prints one line of JSON for each.

Argument: {"url","transports","count","text","info","stay"}.
"""
import base64
import json
import os
import sys
import threading

import socketio

o = json.loads(sys.argv[1])
lock = threading.Lock()


def node(i):
    seen = {"i": i, "order": []}
    over = threading.Event()
    client = socketio.Client(reconnection=False)

    def answer(event, payload):
        seen["order"].append(event)
        seen["event"] = event
        seen["form"] = "string" if isinstance(payload, str) else "object"
        seen["answer"] = json.loads(payload) if isinstance(payload, str) else payload
        if event == "sc2" and not o.get("stay"):
            over.set()

    @client.on("connect", namespace="/init")
    def connect():
        seen["order"].append("connect")

    @client.on("disconnect", namespace="/init")
    def disconnect():
        seen["order"].append("disconnect")
        over.set()

    @client.on("sc1", namespace="/init")
    def sc1(hello):
        seen["order"].append("sc1")
        seen["hello"] = hello
        key = base64.b64encode(os.urandom(32)).decode()
        info = o.get("info") or {
            "name": "node-%d" % i, "key": key, "protocol": 1, "arch": "arm64",
            "cpu": {"model": "Prozeßor™ 𝛼", "cores": 4}, "memory_mb": 1024, "technologies": [{"name": "docker"}],
        }
        client.emit("cs1", json.dumps(info) if o.get("text") else info, namespace="/init")

    client.on("sc2", lambda p: answer("sc2", p), namespace="/init")
    client.on("refused", lambda p: answer("refused", p), namespace="/init")
    try:
        client.connect(o["url"], namespaces=["/init"], transports=o["transports"], wait_timeout=20)
        if not over.wait(30):
            seen["error"] = "no answer"
        seen["transport"] = client.transport()
        client.disconnect()
    except Exception as e:  # the test wants to see it, whatever it is
        seen["error"] = repr(e)
    with lock:
        print(json.dumps(seen), flush=True)


threads = [threading.Thread(target=node, args=(i,)) for i in range(o["count"])]
for t in threads:
    t.start()
for t in threads:
    t.join()
