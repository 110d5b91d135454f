"""Listens as a service manager does (sd_notify(3)): prints "ready", then each message on a line, as JSON."""

import json
import socket
import sys

path = sys.argv[1]
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind("\0" + path[1:] if path.startswith("@") else path)
print("ready", flush=True)
while True:
    print(json.dumps(listener.recv(4096).decode()), flush=True)
