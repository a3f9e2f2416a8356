"""``masklet serve`` in processes of its own, which tests may kill."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

PATIENCE = 300
"""Seconds after which a test fails instead of waiting for ever."""


class Server:
    """``masklet serve`` in a process of its own."""

    def __init__(self, data, *options):
        self.data, self.options = data, options
        self.port = 0
        self.start()

    def start(self):
        command = [sys.executable, "-m", "masklet", "serve", "--data", self.data, "--port", self.port, *self.options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment)
        killer = threading.Timer(PATIENCE, self.process.kill)  # reading has no time limit of its own
        killer.start()
        line = self.process.stdout.readline()
        killer.cancel()
        assert line, "the server did not start"
        self.port = int(line.split(" (")[0].rsplit(":", 1)[1])
        while True:
            try:
                self.get("/health")
            except OSError:
                assert self.process.poll() is None, "the server has ended"
                time.sleep(0.05)
            else:
                return

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)
        self.process.stdout.close()

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.process.stdout.close()

    def restart(self):
        self.stop()
        self.start()

    def request(self, method, path, body=None, content_type="application/json"):
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.address + path, data, {"Content-Type": content_type}, method=method)
        with urllib.request.urlopen(asked, timeout=PATIENCE) as reply:
            return reply.read()

    def content(self, path):
        return self.request("GET", path)

    def get(self, path):
        return json.loads(self.content(path))

    def post(self, path, body):
        return json.loads(self.request("POST", path, body))

    def upload(self, project, path):
        start = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'.encode()
        body = start + path.read_bytes() + b"\r\n--b--\r\n"
        reply = self.request("POST", f"/v1/projects/{project}/media", body, "multipart/form-data; boundary=b")
        return json.loads(reply)["id"]

    def only_media(self):
        (project,) = self.get("/v1/projects")
        (media,) = self.get(f"/v1/projects/{project['id']}/media")
        return media["id"]
